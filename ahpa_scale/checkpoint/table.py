# SPDX-License-Identifier: Apache-2.0
"""Checkpoints as people and programs read them: rows of a table, or facts for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ahpa_scale.checkpoint.find import Found

WHOLE, HALF, DAMAGED = "whole", "half an upload", "damaged"
_HEADER = ["", "name", "batches", "images", "size", "created (UTC)", "saved by"]
_TO_THE_RIGHT = ("batches", "images", "size")


def bytes_to_read(found: Sequence[Found]) -> int:
    """What verifying them takes; nothing of those that names or sizes give away."""
    known = (one.manifest for one in found if one.problem is None)
    return sum(manifest.total_bytes for manifest in known if manifest is not None)


def kind_of(one: Found, problems: Sequence[str]) -> str:
    """WHOLE, HALF or DAMAGED."""
    return HALF if one.begun else DAMAGED if problems else WHOLE


def verdict(one: Found, problems: Sequence[str]) -> str:
    """The kind, and what is damaged."""
    kind = kind_of(one, problems)
    return f"{kind}: {'; '.join(problems)}" if kind == DAMAGED else kind


def by_names_and_sizes(one: Found) -> list[str]:
    """What is wrong with a checkpoint, its files unread."""
    return [one.problem] if one.problem else []


def shown_size(one: Found) -> str:
    """What a checkpoint takes of its store."""
    size = sum(one.sizes.values())
    for unit, power in (("GB", 1e9), ("MB", 1e6)):
        if size >= power:
            return f"{size / power:.1f} {unit}"
    return f"{size / 1e3:.1f} kB"


def facts(one: Found) -> dict[str, Any]:
    """All that is known of a checkpoint, ready for JSON; None where its manifest can't tell."""
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
    """The header and a row for each, without the verdict: finding that may take its time.

    Args:
        found: what to show.
        marked: which of them gets a ``*``.
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
