# SPDX-License-Identifier: Apache-2.0
"""Whole weights out of a checkpoint, for sampling, evaluation and other programs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor

from ahpa_scale import storage
from ahpa_scale.checkpoint.errors import CheckpointError
from ahpa_scale.checkpoint.pieces import ALGORITHMS, MODEL
from ahpa_scale.checkpoint.reader import Reader
from ahpa_scale.tensor_files import save_tensors

Kind = Literal["ema", "model"]
#: What the names of the DiT's own weights begin with.
BACKBONE = "dit."
_AVERAGES = f"{ALGORITHMS}EMA/"


def read_weights(folder: Path, kind: Kind = "ema") -> dict[str, Tensor]:
    """Whole weights and buffers by the model's own names, on the CPU.

    Args:
        folder: of one verified checkpoint, on a local disk.
        kind: ``ema`` takes the averages where there are any (and the trained weight where there is
            none, as for a buffer); ``model`` the trained weights throughout.

    Raises:
        CheckpointError: unreadable, or elements are missing.
    """
    with Reader(folder) as reader:
        weights = {name: reader.whole(MODEL + name) for name in reader.names(MODEL)}
        if kind == "ema":
            averages = reader.names(_AVERAGES)
            weights |= {name: reader.whole(_AVERAGES + name) for name in averages}
    return weights


def chosen_kind(folder: Path, kind: Kind | None = None) -> Kind:
    """Which weights are meant: those asked for, else the averages where there are any.

    Raises:
        CheckpointError: unreadable, or no averages where they are asked for.
    """
    with Reader(folder) as reader:
        averaged = bool(reader.names(_AVERAGES))
    if kind == "ema" and not averaged:
        raise CheckpointError("it has no averages (no EMA was trained): take its weights, 'model'")
    return kind or ("ema" if averaged else "model")


def export_backbone(
    folder: Path, out: Path, kind: Kind | None = None, facts: Mapping[str, str] | None = None
) -> tuple[Kind, int]:
    """Writes the DiT alone, by its own names, as one safetensors file: whole or not at all.

    Args:
        folder: of one verified checkpoint, on a local disk.
        out: the file, replaced where there is one.
        kind: as for `read_weights`; None takes the averages where there are any.
        facts: go into the file's metadata.

    Returns:
        The kind that was written, and how many tensors.

    Raises:
        CheckpointError: unreadable, no averages where they are asked for, or no DiT in it.
        OSError: the disk refused.
    """
    chosen = chosen_kind(folder, kind)
    weights = {
        name.removeprefix(BACKBONE): value.contiguous()
        for name, value in read_weights(folder, chosen).items()
        if name.startswith(BACKBONE)
    }
    if not weights:
        raise CheckpointError(f"it holds no weights whose names begin with {BACKBONE!r}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as room:
        # Some loaders refuse files that don't say which library's tensors these are.
        metadata = {**(facts or {}), "format": "pt", "kind": chosen}
        save_tensors(weights, Path(room, out.name), metadata)
        storage.put_file(Path(room, out.name), out)
    return chosen, len(weights)
