# SPDX-License-Identifier: Apache-2.0
"""Automatic lambda: the alignment's gradient at the tap as a fixed share of the flow's.

Legend: B batch, N tokens, D width of the backbone. All numbers stay on the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ahpa_scale.method.rank_sums import RankSums

SMALLEST, LARGEST = 1e-3, 1e3


class GradientBalance(RankSums):
    """A factor for the alignment's gradient, from the norms that earlier batches measured.

    It keeps the running mean of each batch's log ratio. The loss scale of fp16 cancels in the
    ratio, even when it changes. A batch whose gradients overflowed is left out.

    Args:
        share: wanted norm of the alignment's gradient at the tap, in units of the flow's.
        momentum: share of the old mean kept by each batch.

    Attributes:
        hold: while true, batches are not learnt from: the balance must not make up for a weight
            that is being reduced.
    """

    def __init__(self, share: float, momentum: float = 0.95) -> None:
        super().__init__()
        self.share = share
        self.momentum = momentum
        self.hold = False
        self.log_ratio: Tensor
        self.seen: Tensor
        self.register_buffer("log_ratio", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))

    def factor(self) -> Tensor:
        """The factor for this batch's alignment gradient, a scalar on the device; 1 until a batch
        has been measured.
        """
        factor = (self.share * self.log_ratio.exp()).clamp(SMALLEST, LARGEST)
        return torch.where(self.seen > 0, factor, torch.ones_like(factor))

    @torch.no_grad()
    def observe(self, flow_BND: Tensor, scaled_BND: Tensor, factor: Tensor) -> None:
        """Adds one micro-batch's gradients at one tap: the flow's, and the alignment's after it was
        multiplied by `factor`.

        Several taps add up: the ratio is that of the root sums of squares.
        """
        flow, scaled = (torch.linalg.vector_norm(g.float()) for g in (flow_BND, scaled_BND))
        self.add(flow.square(), (scaled / factor).square())

    def settle(self, *sums: Tensor) -> None:
        """Moves the running mean, unless it is held."""
        if self.hold:
            return
        flow, aligned = sums
        log_ratio = 0.5 * (flow.log() - aligned.log())
        usable = log_ratio.isfinite()
        step = (1 / (self.seen + 1)).clamp(min=1 - self.momentum)
        moved = torch.lerp(self.log_ratio, log_ratio, step)
        self.log_ratio.copy_(torch.where(usable, moved, self.log_ratio))
        self.seen.add_(usable.float())

    def read(self) -> dict[str, float]:
        """For the log; waits for the device.

        Returns:
            ``gradient_ratio``, the measured share before scaling, and ``factor``; empty before the
            first batch.
        """
        if float(self.seen) == 0:
            return {}
        return {"gradient_ratio": float((-self.log_ratio).exp()), "factor": float(self.factor())}
