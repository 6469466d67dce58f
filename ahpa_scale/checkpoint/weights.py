# SPDX-License-Identifier: Apache-2.0
"""Whole weights out of a checkpoint, for sampling, evaluation and other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torch import Tensor

from ahpa_scale.checkpoint.pieces import ALGORITHMS, MODEL
from ahpa_scale.checkpoint.reader import Reader

Kind = Literal["ema", "model"]
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
