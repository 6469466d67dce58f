# SPDX-License-Identifier: Apache-2.0
"""Reads whole weights from a checkpoint, for sampling, evaluation and other programs."""

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
from ahpa_scale.models.backbone import BACKBONE
from ahpa_scale.tensor_files import save_tensors

Kind = Literal["ema", "model"]
_AVERAGES = f"{ALGORITHMS}EMA/"


def read_weights(folder: Path, kind: Kind = "ema") -> dict[str, Tensor]:
    """Whole weights and buffers by the model's own names, on the CPU.

    Args:
        folder: folder of one verified checkpoint, on a local disk.
        kind: ``ema`` takes the EMA if there is one, else the trained weight (as for a buffer);
            ``model`` takes only trained weights.

    Raises:
        CheckpointError: the checkpoint is unreadable, or elements are missing.
    """
    with Reader(folder) as reader:
        weights = {name: reader.whole(MODEL + name) for name in reader.names(MODEL)}
        if kind == "ema":
            averages = reader.names(_AVERAGES)
            weights |= {name: reader.whole(_AVERAGES + name) for name in averages}
    return weights


def chosen_kind(folder: Path, kind: Kind | None = None) -> Kind:
    """The kind of weights to use: `kind` if given, else the EMA if there is one.

    Raises:
        CheckpointError: the checkpoint is unreadable, or has no EMA although `kind` asks for it.
    """
    with Reader(folder) as reader:
        averaged = bool(reader.names(_AVERAGES))
    if kind == "ema" and not averaged:
        raise CheckpointError("it has no averages (no EMA was trained): take its weights, 'model'")
    return kind or ("ema" if averaged else "model")


def export_backbone(
    folder: Path, out: Path, kind: Kind | None = None, facts: Mapping[str, str] | None = None
) -> tuple[Kind, int]:
    """Writes the backbone alone, under its own names, as one safetensors file, whole or not at all.

    Args:
        folder: folder of one verified checkpoint, on a local disk.
        out: the file to write. An existing file is replaced.
        kind: as for `read_weights`; None takes the EMA if there is one.
        facts: added to the file's metadata.

    Returns:
        The kind that was written, and the number of tensors.

    Raises:
        CheckpointError: the checkpoint is unreadable, lacks the EMA asked for, or holds no
            backbone.
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
        # Some loaders refuse files without ``format``, the library that wrote the tensors.
        metadata = {**(facts or {}), "format": "pt", "kind": chosen}
        save_tensors(weights, Path(room, out.name), metadata)
        storage.put_file(Path(room, out.name), out)
    return chosen, len(weights)
