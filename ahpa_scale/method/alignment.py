# SPDX-License-Identifier: Apache-2.0
"""The alignment loss: a tapped hidden state against routed multi-level targets.

Legend: B batch, N tokens, D width of the DiT, C channels of a target, G groups of levels (fine to
coarse).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ahpa_scale.method.heads import build_head
from ahpa_scale.method.losses import get_alignment_loss
from ahpa_scale.method.priors import group_targets
from ahpa_scale.method.router import DynamicRouter, divergence
from ahpa_scale.method.statistics import BinnedStatistics
from ahpa_scale.precision import float32_region

OBJECTIVES = ("standardised", "literal")


def routed_loss(loss_BG: Tensor, weight_BG: Tensor) -> Tensor:
    """``mean_b sum_g w_g(t_b) L_g(b)``, a scalar; gradients reach whatever the two arguments
    carry.
    """
    return (weight_BG * loss_BG).sum(dim=-1).mean()


class PriorAlignment(nn.Module):
    """The auxiliary that a DiT carries in training only: heads, router and their loss.

    Args:
        width: D, the DiT's width.
        grid: the DiT's tokens per side.
        groups: group name -> names of its levels, fine to coarse.
        channels: group name -> channels of its target.
        router: module mapping t ``[B]`` to weights ``[B, G]``.
        head: kind of head, see :func:`ahpa_scale.method.heads.build_head`.
        head_width: hidden width of an MLP head.
        loss: ``cosine`` or ``smooth_l1``.
        smooth_l1_beta: beta of the smooth L1 loss.
        spatial_norm: share of the token mean removed from targets, or None for raw targets.
        objective: what trains a dynamic router. ``literal``: the alignment loss itself, whose
            gradient sends all weight to the level that is *easiest* at that t (see the method
            card). ``standardised``: each level's loss in its own running deviations from its own
            running mean in that t-bin, so that an easy level has no head start.
        prior_weight: beta, the cost of the router's divergence from its prior (uniform weights
            unless it has an SNR prior; then this is the entropy term). Under ``standardised`` the
            optimum is ``w ~ prior * exp(-z / beta)``; without it the noise of z alone walks the
            weights into a corner, because Adam's steps don't shrink with the gradient.
        num_bins: t-bins of the statistics.

    Raises:
        ValueError: unknown objective, head or loss.
    """

    def __init__(
        self,
        *,
        width: int,
        grid: int,
        groups: Mapping[str, Sequence[str]],
        channels: Mapping[str, int],
        router: nn.Module,
        head: str = "mlp",
        head_width: int = 2048,
        loss: str = "cosine",
        smooth_l1_beta: float = 0.05,
        spatial_norm: float | None = 0.6,
        objective: str = "standardised",
        prior_weight: float = 0.5,
        num_bins: int = 10,
    ) -> None:
        super().__init__()
        if objective not in OBJECTIVES:
            raise ValueError(
                f"unknown router objective {objective!r}; choose one of {', '.join(OBJECTIVES)}"
            )
        self.groups = {name: tuple(levels) for name, levels in groups.items()}
        self.grid = grid
        self.spatial_norm = spatial_norm
        self.objective = objective
        self.prior_weight = prior_weight
        self._loss = get_alignment_loss(loss, smooth_l1_beta)
        self.heads = nn.ModuleList(
            build_head(head, width, head_width, channels[name]) for name in self.groups
        )
        self.router = router
        self.statistics = BinnedStatistics(len(self.groups), num_bins)
        self._summary: dict[str, Any] = {}

    @property
    def levels(self) -> tuple[str, ...]:
        """Every level that a batch must bring, in the order of the groups."""
        return tuple(dict.fromkeys(level for group in self.groups.values() for level in group))

    def forward(self, h_BND: Tensor, t_B: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Returns the alignment loss, a float32 scalar; its value never contains the router's own
        objective.

        Args:
            h_BND: tapped tokens of the DiT.
            t_B: noise levels in [0, 1].
            batch: ``prior.<level>`` maps ``[B, C, H, W]`` of the clean images.
        """
        target_BNC = group_targets(batch, self.groups, self.grid, self.spatial_norm)
        # One head per group because groups differ in channels; from the losses on everything is [B,
        # G].
        prediction_BNC = [head(h_BND) for head in self.heads]
        with float32_region(h_BND):
            loss_BG = torch.stack(
                [self._loss(p, y) for p, y in zip(prediction_BNC, target_BNC, strict=True)], dim=1
            )
            weight_BG = self.router(t_B)
            if self.training:
                self.statistics.observe(t_B, loss_BG.detach(), weight_BG.detach())
            if not weight_BG.requires_grad:
                return routed_loss(loss_BG, weight_BG)
            return self._train_router(t_B, loss_BG, weight_BG)

    def _train_router(self, t_B: Tensor, loss_BG: Tensor, weight_BG: Tensor) -> Tensor:
        assert isinstance(self.router, DynamicRouter)
        router_loss = self.prior_weight * divergence(weight_BG, self.router.prior(t_B)).mean()
        if self.objective == "literal":
            total = routed_loss(loss_BG, weight_BG)
        else:
            total = routed_loss(loss_BG, weight_BG.detach())
            z_BG = self.statistics.standardise(t_B, loss_BG.detach())
            router_loss = router_loss + routed_loss(z_BG, weight_BG)
        # Adds the gradient and not the value: the logged number stays comparable between routers.
        return total + (router_loss - router_loss.detach())

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
