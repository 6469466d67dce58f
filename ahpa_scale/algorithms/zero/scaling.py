# SPDX-License-Identifier: Apache-2.0
"""Dynamic loss scaling for ZeRO in float16, without a word to the Trainer.

Composer 0.32.1 calls ``backward`` itself and scales a loss only under its own float16 precision,
which it refuses on the CPU and whose scaler looks for gradients that ZeRO keeps to itself.
DeepSpeed 0.19.8 would scale by a torch scaler of its own, but insists on being the caller, steps
and counts once per shard, and clips the gradients before it has unscaled them. So the gradient is
multiplied here where it starts, in the loss, and DeepSpeed is told what to divide by.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

START = 2.0**16
GROWTH_INTERVAL = 2000
#: DeepSpeed's own floor. What overflows at 1 is not finite without any scaling.
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
        """Takes in how a step went.

        Returns:
            Whether an overflow was the scale's doing: there was one, and the scale could give way.
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
        """Numbers alone."""
        return {"loss_scale": self.value, "sound_in_row": self._sound_in_row}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Goes on from a checkpoint; keeps what it has where the checkpoint is another engine's."""
        self.value = float(state.get("loss_scale", self.value))
        self._sound_in_row = int(state.get("sound_in_row", 0))


class _ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied: what is logged stays the loss itself."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return loss.clone()  # Composer goes on to weigh the micro-batch in place

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.scale, None
