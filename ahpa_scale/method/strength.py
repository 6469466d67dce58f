# SPDX-License-Identifier: Apache-2.0
"""How strongly a picture is aligned at its noise level, apart from how its levels share the weight.

Legend: B batch, T bins of the noise level t, G groups.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ahpa_scale.errors import UserError


class NoiseWindow(nn.Module):
    """Aligns between two noise levels only; the strength averages to 1 over uniform t.

    Args:
        low: lowest aligned t.
        high: highest aligned t.

    Raises:
        UserError: not ``0 <= low < high <= 1``.
    """

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        if not 0 <= low < high <= 1:
            raise UserError(f"the noise window must be 0 <= low < high <= 1, not {low} to {high}")
        self.low, self.high = low, high

    def forward(self, t_B: Tensor) -> Tensor:
        """Strength ``[B]``, float32."""
        inside_B = (t_B >= self.low) & (t_B <= self.high)
        return inside_B.float() / (self.high - self.low)


def gap_strength(gap_GT: Tensor) -> Tensor:
    """Strength ``[T]`` in proportion to the whole gap of a noise level, 1 on average over bins.

    Weights that sum to 1 at every t align as strongly where nothing is lacking as where much is.
    This factor makes ``w_g(t)`` follow N_g(t) over t as well.
    """
    total_T = gap_GT.sum(dim=0)
    return total_T / total_T.mean()


def strength(parts: list[Tensor]) -> Tensor | None:
    """The product of strengths ``[B]``, or None where there is none."""
    return torch.stack(parts).prod(dim=0) if parts else None
