# SPDX-License-Identifier: Apache-2.0
"""Dynamic loss scaling for ZeRO in float16, hidden from the Trainer.

Composer 0.32.1 calls ``backward`` itself and scales a loss only under its own float16 precision. It
refuses that precision on the CPU, and its scaler needs gradients that ZeRO keeps to itself.
DeepSpeed 0.19.8 has a torch scaler of its own, but it must be the caller, steps and counts once per
shard, and clips gradients before it unscales them. So the gradient is multiplied here, where it
starts, in the loss, and DeepSpeed is told what to divide by.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

START = 2.0**16
GROWTH_INTERVAL = 2000
#: DeepSpeed's own floor. A gradient that overflows at 1 is not finite without scaling either.
SMALLEST = 1.0


class LossScale:
    """A scale that halves where a gradient overflows and doubles after `interval` sound steps
    (Micikevicius et al., arXiv 1710.03740; start and interval are those of torch's GradScaler).

    Args:
        start: the first scale.
        interval: sound steps in a row before it doubles.

    Attributes:
        value: the scale of this step; the same on all ranks, because overflows are.
    """

    def __init__(self, start: float = START, interval: int = GROWTH_INTERVAL) -> None:
        self.value = start
        self.interval = interval
        self._sound_in_row = 0

    def scaled(self, loss: Any) -> Any:
        """A model's loss, in any of Composer's forms, with the same value and a scaled gradient."""
        if isinstance(loss, Tensor):
            return _ScaledGradient.apply(loss, self.value) if loss.requires_grad else loss
        if isinstance(loss, Mapping):
            return {name: self.scaled(part) for name, part in loss.items()}
        if isinstance(loss, list | tuple):
            return type(loss)(self.scaled(part) for part in loss)
        return loss

    def update(self, overflow: bool) -> bool:
        """Adjusts the scale after a step.

        Returns:
            Whether the scale caused an overflow: there was one, and the scale could still shrink.
        """
        if overflow:
            self._sound_in_row = 0
            gave_way = self.value > SMALLEST
            self.value = max(self.value / 2, SMALLEST)
            return gave_way
        self._sound_in_row += 1
        if self._sound_in_row >= self.interval:
            self._sound_in_row = 0
            self.value *= 2
        return False

    def state_dict(self) -> dict[str, float]:
        """Only numbers."""
        return {"loss_scale": self.value, "sound_in_row": self._sound_in_row}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Goes on from a checkpoint; keeps its scale if another engine wrote it."""
        self.value = float(state.get("loss_scale", self.value))
        self._sound_in_row = int(state.get("sound_in_row", 0))


class _ScaledGradient(torch.autograd.Function):
    """The identity with a multiplied gradient: the logged loss does not change."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return loss.clone()  # Composer later weighs the micro-batch's loss in place

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.scale, None
