# SPDX-License-Identifier: Apache-2.0
"""Shows checkpoints: table rows for people, JSON facts for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ahpa_scale.checkpoint.find import Found

WHOLE, HALF, DAMAGED = "whole", "half an upload", "damaged"
_HEADER = ["", "name", "batches", "images", "size", "created (UTC)", "saved by"]
_TO_THE_RIGHT = ("batches", "images", "size")


def bytes_to_read(found: Sequence[Found]) -> int:
    """Bytes to read to verify them. Checkpoints with wrong names or sizes count as 0."""
    known = (one.manifest for one in found if one.problem is None)
    return sum(manifest.total_bytes for manifest in known if manifest is not None)


def kind_of(one: Found, problems: Sequence[str]) -> str:
    """WHOLE, HALF or DAMAGED."""
    return HALF if one.begun else DAMAGED if problems else WHOLE


def verdict(one: Found, problems: Sequence[str]) -> str:
    """The kind, followed by what is damaged."""
    kind = kind_of(one, problems)
    return f"{kind}: {'; '.join(problems)}" if kind == DAMAGED else kind


def by_names_and_sizes(one: Found) -> list[str]:
    """What is wrong with a checkpoint, without reading its files."""
    return [one.problem] if one.problem else []


def shown_size(one: Found) -> str:
    """The size of a checkpoint in its store, with a unit."""
    size = sum(one.sizes.values())
    for unit, power in (("GB", 1e9), ("MB", 1e6)):
        if size >= power:
            return f"{size / power:.1f} {unit}"
    return f"{size / 1e3:.1f} kB"


def facts(one: Found) -> dict[str, Any]:
    """All known facts about a checkpoint, for JSON. None where only a manifest could tell."""
    told = one.manifest
    return {
        "name": one.name,
        "url": one.url,
        "batch": one.batch,
        "images": told.num_images if told else None,
        "epoch": told.epoch if told else None,
        "bytes": sum(one.sizes.values()),
        "created": told.created if told else None,
        "run_name": told.run_name if told else None,
        "engine": told.engine if told else None,
        "ranks": told.world_size if told else None,
        "verdict": kind_of(one, by_names_and_sizes(one)),
        "problem": one.problem,
    }


def rows_of(found: Sequence[Found], marked: Found | None = None) -> tuple[str, list[str]]:
    """The header and one row for each checkpoint. Verdicts are left out: finding them is slow.

    Args:
        found: checkpoints to show.
        marked: the one that gets a ``*``.
    """
    cells = [_HEADER, *(_cells(one, "*" if one is marked else "") for one in found)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    header, *rows = (
        "  ".join(
            cell.rjust(width) if title in _TO_THE_RIGHT else cell.ljust(width)
            for cell, width, title in zip(row, widths, _HEADER, strict=True)
        )
        for row in cells
    )
    return header, rows


def _cells(one: Found, mark: str) -> list[str]:
    told = one.manifest
    known = [mark, one.name, f"{one.batch:,}"]
    if told is None:
        return [*known, "-", shown_size(one), "-", "-"]
    created = told.created[:19].replace("T", " ")
    saved_by = f"{told.engine} x {told.world_size}"
    return [*known, f"{told.num_images:,}", shown_size(one), created, saved_by]
