# SPDX-License-Identifier: Apache-2.0
"""Moments of latents and of prior levels, in one pass and without cancellation.

Shapes: B batch, C channels, H W latent sides, g the token grid's side, N all values of a channel
in a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from ahpa_scale.errors import UserError
from ahpa_scale.level_names import LATENT
from ahpa_scale.method.priors import patchify, pool_to_grid
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
        mean_C = means_CN.mean(dim=1)
        squares_C = (means_CN - mean_C[:, None]).square().sum(dim=1)
        added = means_CN.shape[1]
        self.merge(ChannelStatistics(added, mean_C, squares_C, variances_CN.mean(dim=1)))

    def merge(self, other: ChannelStatistics) -> None:
        """Add statistics that were gathered elsewhere.

        Raises:
            UserError: they have another number of channels.
        """
        _check_same(self, other)
        total = self.count + other.count
        delta_C = other.mean_C - self.mean_C
        between = self.count * other.count / total
        self.squares_C = self.squares_C + other.squares_C + delta_C.square() * between
        share = other.count / total
        self.mean_C = self.mean_C + delta_C * share
        self.posterior_C = self.posterior_C + (other.posterior_C - self.posterior_C) * share
        self.count = total

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> ChannelStatistics:
        """Restore statistics from their `vars`.

        Raises:
            UserError: the state does not fit.
        """
        vectors = [each.name for each in fields(cls) if each.name != "count"]
        check_names(state, {"count", *vectors})
        shapes = {tuple(state[name].shape) for name in vectors}
        if len(shapes) > 1 or len(shapes.pop()) != 1:
            raise UserError("statistics of channels with shapes that do not fit each other")
        values = {name: state[name].double() for name in vectors}
        return cls(count=_number(state, "count"), **values)

    def scaling(self) -> LatentScaling:
        """The scaling that gives every channel mean 0 and variance 1."""
        variance_C = self.squares_C / self.count + self.posterior_C
        if not bool((variance_C > 0).all()):
            raise UserError("a latent channel never varies: scaling 'channel' cannot work")
        return LatentScaling(
            "channel", tuple(self.mean_C.tolist()), tuple(variance_C.rsqrt().tolist())
        )


@dataclass
class TokenMoments:
    """Mean and scatter of token vectors in float64, merged batch by batch (Chan, Golub & LeVeque
    1983, eq. 2.1, with outer products for squares).
    """

    count: int = 0
    mean_C: Tensor = field(default_factory=lambda: torch.zeros(()))
    scatter_CC: Tensor = field(default_factory=lambda: torch.zeros(()))

    def update(self, tokens_NC: Tensor) -> None:
        """Add tokens; they are merged on their own device."""
        # Metal has no float64.
        device = "cpu" if tokens_NC.device.type == "mps" else tokens_NC.device
        tokens_NC = tokens_NC.detach().to(device).double()
        mean_C = tokens_NC.mean(dim=0)
        centred_NC = tokens_NC - mean_C
        self.merge(TokenMoments(len(tokens_NC), mean_C, centred_NC.T @ centred_NC))

    def merge(self, other: TokenMoments) -> None:
        """Add moments that were gathered elsewhere; the result lies on their device.

        Raises:
            UserError: they have another number of channels.
        """
        _check_same(self, other)
        device, total = other.mean_C.device, self.count + other.count
        delta_C = other.mean_C - self.mean_C.to(device)
        between_CC = torch.outer(delta_C, delta_C) * (self.count * other.count / total)
        self.scatter_CC = self.scatter_CC.to(device) + other.scatter_CC + between_CC
        self.mean_C = self.mean_C.to(device) + delta_C * (other.count / total)
        self.count = total

    @property
    def covariance_CC(self) -> Tensor:
        """Population covariance of the added tokens."""
        return self.scatter_CC / self.count


class PriorStatistics:
    """Mean and covariance of every prior level over the tokens of all pictures.

    Args:
        grid: tokens per side.
    """

    def __init__(self, grid: int) -> None:
        self._grid = grid
        self._moments: dict[str, TokenMoments] = {}
        self._patch = 1

    def update(self, level: str, map_BCgg: Tensor) -> None:
        """Add a batch of maps of one level."""
        tokens_BNC = pool_to_grid(map_BCgg, self._grid)
        self._moments.setdefault(level, TokenMoments()).update(tokens_BNC.flatten(0, 1))

    def update_latent(self, mean_BCHW: Tensor) -> None:
        """Add a batch of unscaled posterior means, in the patches that the alignment compares."""
        tokens_BNC = patchify(mean_BCHW, self._grid)
        self._patch = tokens_BNC.shape[-1] // mean_BCHW.shape[1]
        self._moments.setdefault(LATENT, TokenMoments()).update(tokens_BNC.flatten(0, 1))

    def tensors(self, scaling: LatentScaling) -> dict[str, Tensor]:
        """``<level>.mean`` [C] and ``<level>.covariance`` [C, C], float32 on the CPU.

        Args:
            scaling: applied to `latent`; it may be known only after the last picture.
        """
        statistics: dict[str, Tensor] = {}
        for level, moments in self._moments.items():
            mean_C, covariance_CC = moments.mean_C.cpu(), moments.covariance_CC.cpu()
            if level == LATENT:
                shift_C, scale_C = (
                    torch.tensor(numbers, dtype=torch.float64).repeat_interleave(self._patch)
                    for numbers in (scaling.shift, scaling.scale)
                )
                mean_C = (mean_C - shift_C) * scale_C
                covariance_CC = covariance_CC * torch.outer(scale_C, scale_C)
            statistics[f"{level}.mean"] = mean_C.float().contiguous()
            statistics[f"{level}.covariance"] = covariance_CC.float().contiguous()
        return statistics

    def merge(self, other: PriorStatistics) -> None:
        """Add statistics that were gathered elsewhere."""
        self._patch = other._patch
        for level, moments in other._moments.items():
            self._moments.setdefault(level, TokenMoments()).merge(moments)

    def state(self) -> dict[str, Tensor]:
        """All statistics, float64 on the CPU, for :meth:`from_state`."""
        state = {"patch": torch.tensor(self._patch)}
        for level, moments in self._moments.items():
            state[f"count/{level}"] = torch.tensor(moments.count)
            state[f"mean/{level}"] = moments.mean_C.cpu().contiguous()
            state[f"scatter/{level}"] = moments.scatter_CC.cpu().contiguous()
        return state

    @classmethod
    def from_state(
        cls, grid: int, state: Mapping[str, Tensor], levels: Sequence[str]
    ) -> PriorStatistics:
        """Restore statistics from :meth:`state`.

        Args:
            grid: tokens per side.
            state: result of :meth:`state`.
            levels: names of exactly the levels that it must hold.

        Raises:
            UserError: the state does not fit.
        """
        names = {f"{kind}/{level}" for level in levels for kind in ("count", "mean", "scatter")}
        check_names(state, {"patch", *names})
        restored = cls(grid)
        restored._patch = _number(state, "patch")
        for level in levels:
            mean_C, scatter_CC = state[f"mean/{level}"], state[f"scatter/{level}"]
            if mean_C.ndim != 1 or scatter_CC.shape != (*mean_C.shape, *mean_C.shape):
                raise UserError(f"moments of {level!r} with shapes that do not fit each other")
            count = _number(state, f"count/{level}")
            restored._moments[level] = TokenMoments(count, mean_C.double(), scatter_CC.double())
        return restored


def _check_same(own: ChannelStatistics | TokenMoments, other: Any) -> None:
    if own.count and own.mean_C.shape != other.mean_C.shape:
        numbers = f"{other.mean_C.numel()} and of {own.mean_C.numel()}"
        raise UserError(f"statistics of {numbers} channels do not fit each other")


def check_names(state: Mapping[str, Tensor], wanted: Set[str]) -> None:
    """Check that a state that was read from a file holds exactly the wanted tensors.

    Raises:
        UserError: it does not; the message names the first wrong one.
    """
    for name in sorted(wanted ^ state.keys()):
        raise UserError(f"{name!r:.80} {'is missing' if name in wanted else 'does not belong'}")


def _number(state: Mapping[str, Tensor], name: str) -> int:
    value = state[name]
    if value.ndim or value.is_floating_point() or int(value) < 1:
        raise UserError(f"{name!r:.80} is no positive whole number")
    return int(value)
