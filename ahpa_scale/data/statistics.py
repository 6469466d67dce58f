# SPDX-License-Identifier: Apache-2.0
"""Mean and variance of latents per channel, in one pass and without cancellation.

Shapes: B batch, C latent channels, H W latent sides, N all values of a channel in a batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ahpa_scale.models.vae_config import LatentScaling


@dataclass
class ChannelStatistics:
    """Mean and variance of posterior samples per channel, gathered batch by batch in float64.

    The variance of a sample is that of the means plus the average posterior variance. Batches are
    merged as in Chan, Golub & LeVeque 1983, eq. 2.1, so nothing cancels.
    """

    count: int = 0
    mean_C: Tensor = field(default_factory=lambda: torch.zeros(()))
    squares_C: Tensor = field(default_factory=lambda: torch.zeros(()))
    posterior_C: Tensor = field(default_factory=lambda: torch.zeros(()))

    def update(self, mean_BCHW: Tensor, std_BCHW: Tensor) -> None:
        """Add a batch of posterior means and standard deviations."""
        means_CN = mean_BCHW.detach().cpu().double().transpose(0, 1).flatten(1)
        variances_CN = std_BCHW.detach().cpu().double().square().transpose(0, 1).flatten(1)
        added = means_CN.shape[1]
        total = self.count + added
        batch_mean_C = means_CN.mean(dim=1)
        delta_C = batch_mean_C - self.mean_C
        batch_squares_C = (means_CN - batch_mean_C[:, None]).square().sum(dim=1)
        self.squares_C = (
            self.squares_C + batch_squares_C + delta_C.square() * (self.count * added / total)
        )
        self.mean_C = self.mean_C + delta_C * (added / total)
        self.posterior_C = (
            self.posterior_C + (variances_CN.mean(dim=1) - self.posterior_C) * added / total
        )
        self.count = total

    def scaling(self) -> LatentScaling:
        """The scaling that gives every channel mean 0 and variance 1."""
        variance_C = self.squares_C / self.count + self.posterior_C
        if not bool((variance_C > 0).all()):
            raise ValueError("a latent channel never varies: scaling 'channel' cannot work")
        return LatentScaling(
            "channel", tuple(self.mean_C.tolist()), tuple(variance_C.rsqrt().tolist())
        )
