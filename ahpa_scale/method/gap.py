# SPDX-License-Identifier: Apache-2.0
"""Targets for a router: weights per level and noise level that follow the recoverability gap, and
gradient agreement as the control.

The gap is the share of a target that can't be read out of the student's own hidden state; in "What
Visual Generators Need from Teachers" (RARE, 2026) it predicts the gain (+0.92), and gradient
agreement predicts the opposite (-0.49 to -0.93).

Legend: B batch, N tokens, C channels of a target, G groups, T bins of the noise level t, L levels,
D blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ahpa_scale.errors import UserError
from ahpa_scale.method.rank_sums import RankSums
from ahpa_scale.method.statistics import BinnedMean, one_hot_bins
from ahpa_scale.method.strength import gap_strength

#: Least readout that counts as a ceiling, and least gap that a level is given.
CEILING_FLOOR, GAP_FLOOR = 0.02, 0.02


def recoverability_gap(r2_GT: Tensor, ceiling_GT: Tensor) -> Tensor:
    """``N = clip((R2_* - R2) / R2_*, 0, 1)`` with a small floor, ``[G, T]``.

    Args:
        r2_GT: share of each target read out at its tap.
        ceiling_GT: R2_*, the best readout; below 0.02 the level is unknowable, not lacking.
    """
    return ((ceiling_GT - r2_GT) / ceiling_GT.clamp(min=CEILING_FLOOR)).clamp(0, 1) + GAP_FLOOR


def gap_weights(gap_GT: Tensor) -> Tensor:
    """Weights ``[G, T]`` that sum to 1 over the groups: ``N / sum N``."""
    return gap_GT / gap_GT.sum(dim=0, keepdim=True)


@dataclass(frozen=True)
class GapMap:
    """A recoverability map, measured once on another run.

    Attributes:
        levels: names of L levels.
        blocks: 1-based numbers of D blocks.
        r2_LDT: share of each level that is read out linearly at each block in each t-bin.
    """

    levels: tuple[str, ...]
    blocks: tuple[int, ...]
    r2_LDT: Tensor

    def gap(self, groups: Mapping[str, Sequence[str]], taps: Sequence[int]) -> Tensor:
        """The gap ``[G, T]`` to the best readout in the whole map; a group's readout is the mean of
        its levels'.

        Args:
            groups: group name -> its levels.
            taps: the block of each group.

        Raises:
            UserError: the map lacks a level or a block.
        """
        r2_rows = []
        for (name, levels), tap in zip(groups.items(), taps, strict=True):
            r2_LDT = self.r2_LDT[[self._row(level) for level in levels]]
            r2_rows.append(r2_LDT[:, self._column(name, tap)].mean(dim=0))
        r2_GT = torch.stack(r2_rows)
        return recoverability_gap(r2_GT, self.r2_LDT.amax().expand_as(r2_GT))

    def _row(self, level: str) -> int:
        if level not in self.levels:
            raise UserError(f"the map has no level {level!r}; it has {', '.join(self.levels)}")
        return self.levels.index(level)

    def _column(self, group: str, tap: int) -> int:
        if tap not in self.blocks:
            nearest = min(self.blocks, key=lambda block: abs(block - tap))
            raise UserError(
                f"the map has no block {tap}, which the group {group!r} taps; the nearest is "
                f"{nearest}"
            )
        return self.blocks.index(tap)


class MeasuredGap(nn.Module):
    """Router weights by a gap that was measured once, kept in the state dict.

    Args:
        gap_GT: the gap in equal bins of t.
    """

    def __init__(self, gap_GT: Tensor) -> None:
        super().__init__()
        self.gap_GT: Tensor
        self.register_buffer("gap_GT", gap_GT.float())

    def forward(self, t_B: Tensor) -> Tensor:
        """Weights ``[B, G]``."""
        return _at(t_B, gap_weights(self.gap_GT))

    def strength(self, t_B: Tensor) -> Tensor:
        """How much is lacking at each t, ``[B]``, 1 on average over t."""
        return _at(t_B, gap_strength(self.gap_GT).unsqueeze(0)).squeeze(1)


class OnlineGap(RankSums):
    """The recoverability gap by what the heads themselves explain, updated while training.

    The explained share is R2 = 1 - residual / variance per level and t-bin. With the smooth L1 loss
    both are squared errors. The cosine loss leaves a prediction's length free; at the best length
    the residual of a unit target is 1 - cos^2, where cos is the bin's mean. The variance is
    1 - |mean unit target|^2: what a constant direction explains is not recovered from the state.

    Args:
        channels: C of each group.
        num_bins: T.
        loss: ``cosine``, ``smooth_l1`` or ``squared``.
    """

    def __init__(self, channels: Sequence[int], num_bins: int, loss: str) -> None:
        super().__init__()
        self.cosine = loss == "cosine"
        #: Mean cosine, or mean squared error.
        self.scores = BinnedMean(len(channels), num_bins)
        self.momentum = self.scores.momentum
        self.means: list[str] = []
        self.energy_G: Tensor
        self.seen: Tensor
        self.register_buffer("energy_G", torch.zeros(len(channels)))
        self.register_buffer("seen", torch.zeros(()))
        for group, width in enumerate(channels):
            self.means.append(f"mean_{group}")
            self.register_buffer(self.means[-1], torch.zeros(width))

    @torch.no_grad()
    def observe(
        self, t_B: Tensor, prediction_BNC: Sequence[Tensor], target_BNC: Sequence[Tensor]
    ) -> None:
        """Adds one micro-batch: predictions and float32 targets, one of each per group."""
        scores, means, energies = [], [], []
        for p_BNC, y_BNC in zip(prediction_BNC, target_BNC, strict=True):
            if self.cosine:
                y_BNC = F.normalize(y_BNC, dim=-1)
                scores.append((F.normalize(p_BNC.float(), dim=-1) * y_BNC).sum(-1).mean(-1))
            else:
                scores.append((p_BNC.float() - y_BNC).square().sum(-1).mean(-1))
            means.append(y_BNC.mean(dim=1).sum(dim=0))
            energies.append(y_BNC.square().sum(-1).mean(-1).sum())
        self.scores.observe(t_B, torch.stack(scores, dim=1))
        pictures = t_B.new_full((), t_B.shape[0], dtype=torch.float32)
        self.add(*means, torch.stack(energies), pictures)

    def settle(self, *sums: Tensor) -> None:
        """Moves the targets' running moments."""
        *means, energy_G, pictures = sums
        some = (pictures > 0).float()
        step = some * (1 / (self.seen + 1)).clamp(min=1 - self.momentum)
        pictures = pictures.clamp(min=1)
        for name, mean_C in zip(self.means, means, strict=True):
            getattr(self, name).lerp_(mean_C / pictures, step)
        self.energy_G.lerp_(energy_G / pictures, step)
        self.seen.add_(some)

    def r2(self) -> Tensor:
        """Explained share ``[G, T]`` in [0, 1]; 0 where nothing is known yet."""
        mean_square_G = torch.stack([getattr(self, name).square().sum() for name in self.means])
        variance_G1 = (self.energy_G - mean_square_G).clamp(min=1e-6).unsqueeze(1)
        residual_GT = self.scores.mean_GT
        if self.cosine:
            residual_GT = self.energy_G.unsqueeze(1) - residual_GT.clamp(min=0).square()
        known_GT = (self.scores.seen_GT > 0).float()
        return known_GT * (1 - residual_GT / variance_G1).clamp(0, 1)

    def forward(self, t_B: Tensor) -> Tensor:
        """Weights ``[B, G]`` by the gap to the best readout seen anywhere; uniform at first."""
        return _at(t_B, gap_weights(self._gap()))

    def strength(self, t_B: Tensor) -> Tensor:
        """How much is lacking at each t, ``[B]``, 1 on average over t."""
        return _at(t_B, gap_strength(self._gap()).unsqueeze(0)).squeeze(1)

    def _gap(self) -> Tensor:
        r2_GT = self.r2()
        return recoverability_gap(r2_GT, r2_GT.amax().expand_as(r2_GT))


class Agreement(nn.Module):
    """Weights by how each group's gradient agrees with the flow's at the tap: a negative control.

    Args:
        num_groups: G.
        num_bins: T.
        temperature: of the softmax over the mean cosines.
    """

    def __init__(self, num_groups: int, num_bins: int, temperature: float = 0.1) -> None:
        super().__init__()
        self.cosines = BinnedMean(num_groups, num_bins)
        self.temperature = temperature

    @torch.no_grad()
    def observe(self, t_B: Tensor, flow_BND: Tensor, aligned: Mapping[int, Tensor]) -> None:
        """Adds one micro-batch's gradients at one tap: the flow's, and each group's by number."""
        flow_BX = flow_BND.float().flatten(1)
        cosine_BG = torch.stack(
            [F.cosine_similarity(a.float().flatten(1), flow_BX) for a in aligned.values()], dim=1
        )
        # Gradients that overflowed under fp16 say nothing.
        self.cosines.observe(t_B, cosine_BG.nan_to_num(0.0, 0.0, 0.0), rows=list(aligned))

    def forward(self, t_B: Tensor) -> Tensor:
        """Weights ``[B, G]``; uniform at first."""
        return _at(t_B, (self.cosines.mean_GT / self.temperature).softmax(dim=0))


def _at(t_B: Tensor, value_GT: Tensor) -> Tensor:
    """The bins' values at each noise level, ``[B, G]``."""
    return one_hot_bins(t_B, value_GT.shape[1]) @ value_GT.T
