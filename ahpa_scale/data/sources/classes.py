# SPDX-License-Identifier: Apache-2.0
"""Which number a class has: in the order of the source's names, or of an earlier data set's.

Shapes: N pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

import numpy as np
from numpy.typing import NDArray

from ahpa_scale.data.card import CARD_NAME, read_card
from ahpa_scale.data.pictures.files import shown
from ahpa_scale.errors import UserError

#: The classes of pictures that have none.
ONE_CLASS = ("all",)
#: Most classes; a card has no more.
_MOST = 10**6
_LONGEST = 1000


def known_classes(place: str | None) -> tuple[str, ...] | None:
    """The classes of a prepared data set: its folder or URL, or that of its card.

    Raises:
        UserError: there is no complete data set.
    """
    return None if place is None else read_card(place.removesuffix(CARD_NAME)).classes


def coded(values: Sequence[str | int]) -> tuple[tuple[str, ...] | None, NDArray[np.int64]]:
    """Classes and labels of what a source tells of each picture.

    Args:
        values: numbers, as int or as text; or names.

    Returns:
        The classes, names in their alphabetic order, and the labels; None for the classes if all
        values are numbers, which then are the labels.
    """
    texts = [str(value) for value in values]
    if all(_is_number(text) for text in texts):
        return None, np.array([int(text) for text in texts], np.int64)
    names = sorted(set(texts))
    number = {name: label for label, name in enumerate(names)}
    return tuple(names), np.array([number[text] for text in texts], np.int64)


def labels_of(
    classes: tuple[str, ...] | None,
    labels_N: NDArray[np.int64],
    wanted: tuple[str, ...] | None,
    place: str,
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """All classes and the labels by their order.

    Args:
        classes: the source's class names; None if its labels are numbers without names.
        labels_N: the source's labels.
        wanted: the classes to have, in their order; None takes the source's own.
        place: the source, for messages.

    Raises:
        UserError: a label is no number of a class, a name is no text, or a class is none of those
            to have.
    """
    least, most = int(labels_N.min()), int(labels_N.max())
    limit = _MOST if classes is None else len(classes)
    if least < 0 or most >= limit:
        raise UserError(
            f"{place} has a picture of label {least if least < 0 else most}, and labels are 0 to "
            f"{limit - 1}: leave pictures without a label out"
        )
    for name in classes or ():
        # Bytes that are not UTF-8 become lone surrogates.
        lone = any("\ud800" <= each <= "\udfff" for each in name)
        if not name.strip() or len(name) > _LONGEST or lone:
            problem = f"{place} has a class {shown(name[:80])!r}"
            raise UserError(f"{problem}: a name is UTF-8 text of 1 to {_LONGEST} letters")
    if wanted is None:
        return classes or tuple(str(label) for label in range(most + 1)), labels_N
    if classes is None and not all(map(_is_number, wanted)):
        if most >= len(wanted):
            raise UserError(
                f"{place} has a picture of label {most}, and there are {len(wanted)} known classes"
            )
        return wanted, labels_N
    number = {name: label for label, name in enumerate(wanted)}
    used = np.unique(labels_N)
    codes = np.zeros(most + 1, np.int64)
    for label in used.tolist():
        name = str(label) if classes is None else classes[label]
        if name not in number:
            near = get_close_matches(name, wanted, n=1)
            hint = f": did you mean {shown(near[0])}?" if near else ""
            raise UserError(
                f"{place} has the class {shown(name)}, which is none of the {len(wanted)} known "
                f"classes{hint}"
            )
        codes[label] = number[name]
    return wanted, codes[labels_N]


def _is_number(text: str) -> bool:
    return text.removeprefix("-").isdecimal() and text.isascii() and len(text) < 18
