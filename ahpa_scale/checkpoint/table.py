# SPDX-License-Identifier: Apache-2.0
"""Shows checkpoints: table rows for people, JSON facts for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ahpa_scale.checkpoint.find import StoredCheckpoint

WHOLE, HALF, DAMAGED = "whole", "half an upload", "damaged"
_HEADER = ["", "name", "batches", "images", "size", "created (UTC)", "saved by"]
_TO_THE_RIGHT = ("batches", "images", "size")


def bytes_to_read(checkpoints: Sequence[StoredCheckpoint]) -> int:
    """Bytes to read to verify them. Checkpoints with wrong names or sizes count as 0."""
    known = (checkpoint.manifest for checkpoint in checkpoints if checkpoint.problem is None)
    return sum(manifest.total_bytes for manifest in known if manifest is not None)


def kind_of(checkpoint: StoredCheckpoint, problems: Sequence[str]) -> str:
    """WHOLE, HALF or DAMAGED."""
    return HALF if checkpoint.begun else DAMAGED if problems else WHOLE


def verdict(checkpoint: StoredCheckpoint, problems: Sequence[str]) -> str:
    """The kind, followed by what is damaged."""
    kind = kind_of(checkpoint, problems)
    return f"{kind}: {'; '.join(problems)}" if kind == DAMAGED else kind


def by_names_and_sizes(checkpoint: StoredCheckpoint) -> list[str]:
    """What is wrong with a checkpoint, without reading its files."""
    return [checkpoint.problem] if checkpoint.problem else []


def shown_size(checkpoint: StoredCheckpoint) -> str:
    """The size of a checkpoint in its store, with a unit."""
    size = sum(checkpoint.sizes.values())
    for unit, power in (("GB", 1e9), ("MB", 1e6)):
        if size >= power:
            return f"{size / power:.1f} {unit}"
    return f"{size / 1e3:.1f} kB"


def facts(checkpoint: StoredCheckpoint) -> dict[str, Any]:
    """All known facts about a checkpoint, for JSON. None where only a manifest could tell."""
    told = checkpoint.manifest
    return {
        "name": checkpoint.name,
        "url": checkpoint.url,
        "batch": checkpoint.batch,
        "images": told.num_images if told else None,
        "epoch": told.epoch if told else None,
        "bytes": sum(checkpoint.sizes.values()),
        "created": told.created if told else None,
        "run_name": told.run_name if told else None,
        "engine": told.engine if told else None,
        "ranks": told.world_size if told else None,
        "verdict": kind_of(checkpoint, by_names_and_sizes(checkpoint)),
        "problem": checkpoint.problem,
        "best": checkpoint.best,
    }


def rows_of(
    checkpoints: Sequence[StoredCheckpoint], marked: StoredCheckpoint | None = None
) -> tuple[str, list[str]]:
    """The header and one row for each checkpoint. Verdicts are left out: finding them is slow. The
    best checkpoint gets ``best``.

    Args:
        checkpoints: the checkpoints to show.
        marked: the one that gets a ``*``.
    """
    cells = [
        _HEADER,
        *(_cells(checkpoint, _mark(checkpoint, marked)) for checkpoint in checkpoints),
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    header, *rows = (
        "  ".join(
            cell.rjust(width) if title in _TO_THE_RIGHT else cell.ljust(width)
            for cell, width, title in zip(row, widths, _HEADER, strict=True)
        )
        for row in cells
    )
    return header, rows


def _mark(checkpoint: StoredCheckpoint, marked: StoredCheckpoint | None) -> str:
    return "*" * (checkpoint is marked) + "best" * checkpoint.best


def _cells(checkpoint: StoredCheckpoint, mark: str) -> list[str]:
    told = checkpoint.manifest
    known = [mark, checkpoint.name, f"{checkpoint.batch:,}"]
    if told is None:
        return [*known, "-", shown_size(checkpoint), "-", "-"]
    created = told.created[:19].replace("T", " ")
    saved_by = f"{told.engine} x {told.world_size}"
    return [*known, f"{told.num_images:,}", shown_size(checkpoint), created, saved_by]
