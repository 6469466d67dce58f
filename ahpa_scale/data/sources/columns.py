# SPDX-License-Identifier: Apache-2.0
"""Which columns of a table hold pictures and labels."""

from __future__ import annotations

from collections.abc import Sequence

from ahpa_scale.errors import UserError

LABELS = ("label", "labels", "class", "cls", "fine_label", "category")
IMAGES = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp")


def chosen_label(columns: Sequence[str], wanted: str | None, place: str) -> str:
    """The column of labels: the wanted one, the first of a usual name, or the only one.

    Raises:
        UserError: there is none; the message lists the columns.
    """
    return _chosen(columns, wanted, LABELS, "label", place)


def chosen_image(columns: Sequence[str], wanted: str | None, place: str) -> str:
    """The column of pictures, likewise."""
    return _chosen(columns, wanted, IMAGES, "image", place)


def _chosen(
    columns: Sequence[str], wanted: str | None, usual: Sequence[str], kind: str, place: str
) -> str:
    if wanted is None:
        named = [name for name in usual if name in columns]
        if named or len(columns) == 1:
            return [*named, *columns][0]
    elif wanted in columns:
        return wanted
    if not columns:
        raise UserError(f"{place} has no column that can be the {kind}")
    problem = f"{place} has no {kind} in a column {wanted}"
    if wanted is None:
        problem = f"{place}: which column is the {kind}?"
    raise UserError(f"{problem}: give one of {', '.join(columns)} as --{kind}-column")
