# SPDX-License-Identifier: Apache-2.0
"""Reads whole weights from a checkpoint, for sampling, evaluation and other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torch import Tensor

from ahpa_scale.checkpoint.errors import CheckpointError
from ahpa_scale.checkpoint.pieces import ALGORITHMS, MODEL
from ahpa_scale.checkpoint.reader import Reader
from ahpa_scale.models.backbone import BACKBONE

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


def read_backbone(folder: Path, kind: Kind | None = None) -> tuple[Kind, dict[str, Tensor]]:
    """The backbone's weights by its own names; what is attached for alignment is left out.

    Args:
        folder: folder of one verified checkpoint, on a local disk.
        kind: as for `chosen_kind`.

    Returns:
        The kind that was read, and the weights.

    Raises:
        CheckpointError: the checkpoint is unreadable, lacks the EMA asked for, or holds no
            backbone.
    """
    chosen = chosen_kind(folder, kind)
    weights = {
        name.removeprefix(BACKBONE): value
        for name, value in read_weights(folder, chosen).items()
        if name.startswith(BACKBONE)
    }
    if not weights:
        raise CheckpointError(f"it holds no weights whose names begin with {BACKBONE!r}")
    return chosen, weights
