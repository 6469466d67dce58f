# SPDX-License-Identifier: Apache-2.0
"""Routers: noise level t -> weights over the levels, fine to coarse, in float32.

Legend: B batch, G levels (index 0 is the finest), t_B noise levels from 0 (data) to 1 (noise).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ahpa_scale.errors import UserError
from ahpa_scale.precision import float32_region


def level_positions(num_levels: int) -> Tensor:
    """Places the levels on [-1, 1], fine to coarse; a single level sits at 0."""
    return torch.linspace(-1, 1, num_levels) if num_levels > 1 else torch.zeros(1)


class UniformRouter(nn.Module):
    """The same weight for every level at every t: the baseline a router has to beat."""

    def __init__(self, num_levels: int) -> None:
        super().__init__()
        self.num_levels = num_levels

    def forward(self, t_B: Tensor) -> Tensor:
        """Returns weights ``[B, G]`` that sum to 1."""
        return t_B.new_full(
            (t_B.shape[0], self.num_levels), 1 / self.num_levels, dtype=torch.float32
        )


class ScheduledRouter(nn.Module):
    """A hand-made schedule: coarse levels at high noise, fine levels at low noise, or exactly the
    reverse.

    ``w = softmax(sharpness * position_g * (2t - 1))``; `reverse` turns the sign: a test that
    can falsify the claim.
    """

    def __init__(self, num_levels: int, sharpness: float = 3.0, reverse: bool = False) -> None:
        super().__init__()
        self.slope_G: Tensor
        slope_G = level_positions(num_levels) * (-sharpness if reverse else sharpness)
        self.register_buffer("slope_G", slope_G, persistent=False)

    def forward(self, t_B: Tensor) -> Tensor:
        """Returns weights ``[B, G]`` that sum to 1."""
        return ((2 * t_B.float() - 1).unsqueeze(1) * self.slope_G).softmax(dim=-1)


class DynamicRouter(nn.Module):
    """AHPA's timestep-conditioned router: an MLP of `depth` linear layers over an embedding of t
    (arXiv 2605.03317).

    The paper states only the four layers and that the router "selects and weights". The rest is our
    choice: ``w = floor + (1 - G floor) softmax((MLP(emb(t)) + snr_prior * position * (2t - 1)) /
    temperature)``, restricted to the `top_k` largest logits when asked. The last layer starts at
    zero, so training starts from the prior, or from uniform weights when `snr_prior` is 0. The term
    ``2t - 1`` stands for the log-SNR: on both of our paths the log-SNR is odd about t = 1/2 and
    monotone in t.

    Args:
        num_levels: G.
        hidden: width of the embedding of t and of the hidden layers, even.
        depth: number of linear layers, at least 2.
        temperature: divides the logits; above 1 flattens the weights.
        floor: least weight of each level, below 1 / G.
        top_k: keep only this many levels at each t, or None for all.
        snr_prior: strength of the coarse-at-high-noise prior on the logits; negative reverses it.

    Raises:
        UserError: an odd `hidden`, or a floor or top_k that G levels can't satisfy.
    """

    def __init__(
        self,
        num_levels: int,
        *,
        hidden: int = 256,
        depth: int = 4,
        temperature: float = 1.0,
        floor: float = 0.0,
        top_k: int | None = None,
        snr_prior: float = 0.0,
    ) -> None:
        super().__init__()
        if floor * num_levels >= 1:
            raise UserError(
                f"router floor {floor} leaves nothing to route over {num_levels} levels; "
                f"it must be below {1 / num_levels:.3g}"
            )
        if top_k is not None and not 1 <= top_k <= num_levels:
            raise UserError(
                f"router top_k {top_k} must lie between 1 and {num_levels}, the number of levels"
            )
        if hidden < 2 or hidden % 2:
            raise UserError(
                f"router hidden width {hidden} must be an even number: half cosines, half sines"
            )
        self.num_levels = num_levels
        self.temperature = temperature
        self.floor = floor
        self.top_k = top_k
        widths = [hidden] * depth + [num_levels]
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Linear(fan_in, fan_out), nn.SiLU()]
        self.mlp = nn.Sequential(*layers[:-1])
        last = layers[-2]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.frequency: Tensor
        self.slope_G: Tensor
        half = torch.arange(hidden // 2, dtype=torch.float32) / max(hidden // 2, 1)
        # Highest frequency 2 pi * 4 over t in [0, 1]: the router should be smooth in t.
        frequency = 2 * math.pi * 4 * torch.exp(-math.log(64.0) * half)
        self.register_buffer("frequency", frequency, persistent=False)
        self.register_buffer("slope_G", level_positions(num_levels) * snr_prior, persistent=False)

    def forward(self, t_B: Tensor, raw: bool = False) -> Tensor:
        """Returns weights ``[B, G]`` that sum to 1, computed in float32 whatever the autocast; with
        `raw`, the logarithms of the softmax's shares, the input of `weights`.
        """
        with float32_region(t_B):
            angle = t_B.float().unsqueeze(1) * self.frequency
            learnt_BG = self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1))
            logit_BG = (learnt_BG + self._prior_logits(t_B)) / self.temperature
            raw_BG = logit_BG.log_softmax(dim=-1)
            return raw_BG if raw else self.weights(raw_BG)

    def weights(self, raw_BG: Tensor) -> Tensor:
        """Logarithms of shares -> weights ``[B, G]``: the `top_k` largest, above the floor."""
        if self.top_k is not None and self.top_k < self.num_levels:
            least_B1 = raw_BG.topk(self.top_k, dim=-1).values[:, -1:]
            raw_BG = raw_BG.masked_fill(raw_BG < least_B1, -math.inf)
        return self.floor + (1 - self.num_levels * self.floor) * raw_BG.softmax(dim=-1)

    def shares(self, weight_BG: Tensor) -> Tensor:
        """The shares ``[B, G]`` that give these weights, or the nearest ones above the floor."""
        share_BG = (weight_BG - self.floor).clamp(min=0)
        return share_BG / share_BG.sum(dim=-1, keepdim=True)

    def prior(self, t_B: Tensor) -> Tensor:
        """The shares ``[B, G]`` before anything is learnt; leaving them costs the router."""
        return (self._prior_logits(t_B) / self.temperature).softmax(dim=-1)

    def _prior_logits(self, t_B: Tensor) -> Tensor:
        return (2 * t_B.float() - 1).unsqueeze(1) * self.slope_G


def cross_entropy(target_BG: Tensor, raw_BG: Tensor) -> Tensor:
    """Cross-entropy of a router's shares to a target distribution in nats, ``[B]``; least where
    they agree.

    Its gradient in the logits is share minus target, so it brings a router back from any corner.
    The gradient of the entropy, or of anything linear in the shares, is 0 where one share is 1: the
    router would stay there for good.

    Args:
        target_BG: distributions.
        raw_BG: logarithms of the shares.
    """
    return -(target_BG * raw_BG).sum(dim=-1)
