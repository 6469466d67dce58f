# SPDX-License-Identifier: Apache-2.0
"""The alignment loss: tapped hidden states against routed multi-level targets.

Legend: B batch, N tokens, D width of the backbone, C channels of a target, G groups of levels
(fine to coarse), T bins of the noise level t.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ahpa_scale.errors import UserError
from ahpa_scale.method.balance import GradientBalance
from ahpa_scale.method.gap import Agreement, MeasuredGap, OnlineGap
from ahpa_scale.method.gradients import TapProbe
from ahpa_scale.method.heads import build_head
from ahpa_scale.method.losses import AlignmentLoss
from ahpa_scale.method.priors import pool_tokens
from ahpa_scale.method.rank_sums import RankSums, commit_all
from ahpa_scale.method.router import DynamicRouter, cross_entropy
from ahpa_scale.method.settings import AlignmentSettings
from ahpa_scale.method.statistics import BatchMean, BinnedStatistics
from ahpa_scale.method.strength import NoiseWindow, strength
from ahpa_scale.method.targets import GroupTargets
from ahpa_scale.method.trend import ResidualTrend
from ahpa_scale.method.whitening import Whitening
from ahpa_scale.precision import float32_region

OBJECTIVES = ("standardised", "literal", "gap", "agreement")


def routed_loss(loss_BG: Tensor, weight_BG: Tensor, strength_B: Tensor | None = None) -> Tensor:
    """``mean_b s(t_b) sum_g w_g(t_b) L_g(b)``, a scalar; gradients flow to all arguments that
    carry them. Without `strength_B`, s is 1.
    """
    loss_B = (weight_BG * loss_BG).sum(dim=-1)
    return (loss_B if strength_B is None else strength_B * loss_B).mean()


@dataclass(frozen=True)
class AlignmentShape:
    """The sizes and names that the backbone and the data set give an alignment.

    Attributes:
        width: D, the backbone's width.
        grid: the backbone's tokens per side.
        groups: group name -> names of its levels, fine to coarse.
        channels: group name -> channels of its target, after any whitening.
        taps: the block, 1-based, that each group reads, in the order of the groups; None where all
            read the one block that the auxiliary is attached to.
        grids: tokens per side that each group is compared on, in the order of the groups; None for
            the backbone's own.
    """

    width: int
    grid: int
    groups: Mapping[str, Sequence[str]]
    channels: Mapping[str, int]
    taps: Sequence[int] | None = None
    grids: Sequence[int] | None = None


class PriorAlignment(nn.Module):
    """The auxiliary that a backbone carries in training only: heads, router and their loss.

    Args:
        shape: the backbone and the data that it fits.
        settings: how it aligns, with the kind's defaults in place of None.
        router: module mapping t ``[B]`` to weights ``[B, G]``.
        whitening: level -> its whitening; others stay as they are.
        gap: ``[G, T]``, what objective ``gap`` trains the router to; None measures it online.

    Attributes:
        balance: the measured ratio of the gradients, or None.
        trend: averages of the residual.
        batch_loss: the alignment loss of the last batch, over all ranks and micro-batches.

    Raises:
        UserError: unknown objective, head or loss, or an impossible grid.
    """

    def __init__(
        self,
        shape: AlignmentShape,
        settings: AlignmentSettings,
        *,
        router: nn.Module,
        whitening: Mapping[str, Whitening] | None = None,
        gap: Tensor | None = None,
    ) -> None:
        super().__init__()
        objective, prior_weight = settings.router.objective, settings.router.prior_weight
        if objective not in OBJECTIVES:
            raise UserError(
                f"unknown router objective {objective!r}; choose one of {', '.join(OBJECTIVES)}"
            )
        assert prior_weight is not None
        assert settings.loss is not None
        assert settings.spatial_norm != "kind"
        self.groups = {name: tuple(levels) for name, levels in shape.groups.items()}
        self.taps = None if shape.taps is None else tuple(shape.taps)
        self.objective = objective
        self.prior_weight = prior_weight
        self.targets = GroupTargets(
            self.groups,
            shape.grid,
            settings.spatial_norm,
            grids=shape.grids,
            whitening=whitening,
            of_another=settings.placebo,
        )
        self._loss = AlignmentLoss(settings.loss, settings.smooth_l1_beta, settings.token_weights)
        channels, head = [shape.channels[name] for name in self.groups], settings.head
        assert head.kind is not None
        self.heads = nn.ModuleList(
            build_head(head.kind, shape.width, head.width, count) for count in channels
        )
        self.router = router
        self.statistics = BinnedStatistics(len(self.groups), settings.bins)
        self.trend = ResidualTrend(settings.release)
        self.batch_loss = BatchMean()
        ratio = settings.gradient_ratio
        self.balance = None if ratio is None else GradientBalance(ratio)
        self.router_target = self._router_target(channels, settings.bins, gap)
        self.window = None if settings.window is None else NoiseWindow(*settings.window)
        self.gap_strength = settings.router.gap_strength
        self._summary: dict[str, Any] = {}

    def _router_target(
        self, channels: Sequence[int], num_bins: int, gap: Tensor | None
    ) -> nn.Module | None:
        if not isinstance(self.router, DynamicRouter):
            return None
        if self.objective == "agreement":
            return Agreement(len(self.groups), num_bins)
        if self.objective != "gap":
            return None
        if gap is not None:
            return MeasuredGap(gap)
        return OnlineGap(channels, num_bins, self._loss.kind)

    @property
    def levels(self) -> tuple[str, ...]:
        """Every level that a batch must bring, in the order of the groups."""
        return tuple(dict.fromkeys(level for group in self.groups.values() for level in group))

    @property
    def blocks(self) -> tuple[int, ...]:
        """The blocks that it reads, in rising order; empty where it reads the one tapped."""
        return tuple(sorted(set(self.taps or ())))

    def forward(
        self, tapped: Mapping[int, Tensor], t_B: Tensor, batch: Mapping[str, Tensor]
    ) -> Tensor:
        """Returns the alignment loss, a float32 scalar; its value contains neither the
        router's own objective nor a factor that balances gradients.

        Args:
            tapped: block (1-based) -> its tokens ``[B, N, D]``.
            t_B: noise levels in [0, 1].
            batch: ``prior.<level>`` maps ``[B, C, H, W]`` of the clean images.
        """
        target_BNC = self.targets(batch)
        # One head per group because groups differ in channels; the losses and all after are [B, G].
        prediction_BNC = [
            head(pool_tokens(h_BND, side))
            for head, h_BND, side in zip(
                self.heads, self._read_by_heads(tapped, t_B), self.targets.grids, strict=True
            )
        ]
        with float32_region(t_B):
            loss_BG = torch.stack(
                [self._loss(p, y) for p, y in zip(prediction_BNC, target_BNC, strict=True)], dim=1
            )
            raw_BG: Tensor | None = None
            if isinstance(self.router, DynamicRouter):
                raw_BG = self.router(t_B, raw=True)
                weight_BG = self.router.weights(raw_BG)
            else:
                weight_BG = self.router(t_B)
            if self.training:
                self._observe(t_B, loss_BG.detach(), weight_BG.detach())
                if isinstance(self.router_target, OnlineGap):
                    self.router_target.observe(t_B, prediction_BNC, target_BNC)
            strength_B = self._strength(t_B)
            if raw_BG is not None and raw_BG.requires_grad:
                learns = self._router_loss(t_B, loss_BG.detach(), raw_BG, weight_BG)
                if self.objective != "literal":
                    weight_BG = weight_BG.detach()
                # Adds the gradient and not the value: the logged number stays comparable.
                total = routed_loss(loss_BG, weight_BG, strength_B) + (learns - learns.detach())
            else:
                total = routed_loss(loss_BG, weight_BG, strength_B)
            if self.training:
                self.batch_loss.observe(total.detach(), pictures=t_B.shape[0])
            return total

    def _strength(self, t_B: Tensor) -> Tensor | None:
        parts = [] if self.window is None else [self.window(t_B)]
        if self.gap_strength:
            assert isinstance(self.router_target, MeasuredGap | OnlineGap)
            parts.append(self.router_target.strength(t_B))
        return strength(parts)

    def _read_by_heads(self, tapped: Mapping[int, Tensor], t_B: Tensor) -> list[Tensor]:
        taps = self.taps or tuple(tapped) * len(self.groups)
        agreement = self.router_target if isinstance(self.router_target, Agreement) else None
        if not self.training or (self.balance is None and agreement is None):
            return [tapped[tap] for tap in taps]
        return TapProbe(self.balance, agreement).watch(tapped, taps, t_B)

    def _observe(self, t_B: Tensor, loss_BG: Tensor, weight_BG: Tensor) -> None:
        self.statistics.observe(t_B, loss_BG, weight_BG)
        residual = routed_loss(loss_BG - self._loss.optimum, weight_BG)
        self.trend.observe(residual, pictures=t_B.shape[0])

    def _router_loss(
        self, t_B: Tensor, loss_BG: Tensor, raw_BG: Tensor, weight_BG: Tensor
    ) -> Tensor:
        """What trains the router beside the alignment loss, or in its place."""
        assert isinstance(self.router, DynamicRouter)
        held = self.prior_weight * cross_entropy(self.router.prior(t_B), raw_BG).mean()
        if self.objective == "literal":
            return held
        if self.router_target is None:
            return held + routed_loss(self.statistics.standardise(t_B, loss_BG), weight_BG)
        # On the shares, so that levels left out by top-k still learn and can come back.
        target_BG = self.router.shares(self.router_target(t_B).detach())
        return held + cross_entropy(target_BG, raw_BG).mean()

    def commit(self) -> None:
        """Ends a batch: one sum over the ranks for everything that was observed."""
        commit_all(part for part in self.modules() if isinstance(part, RankSums))

    def read_summary(self, batch: int) -> dict[str, Any]:
        """Brings the statistics since the last call to the host and keeps them for :meth:`summary`.

        Args:
            batch: batches trained so far, noted in the summary.
        """
        self._summary = {"batch": batch, "levels": list(self.groups), **self.statistics.read()}
        return self._summary

    def summary(self) -> dict[str, Any]:
        """The latest reading, or an empty dict before the first: ``batch``, ``levels``, and per
        level and t-bin ``weight_GT`` and ``loss_GT`` (None where no picture fell), with ``count_T``
        pictures per bin.
        """
        return self._summary
