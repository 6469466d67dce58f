# SPDX-License-Identifier: Apache-2.0
"""The alignment's targets: levels of the clean pictures, normalised, grouped and pooled.

Legend: B batch, N tokens, C channels of a group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ahpa_scale.errors import UserError
from ahpa_scale.method.priors import level_tokens, pool_tokens, spatial_normalise
from ahpa_scale.method.whitening import Whitening
from ahpa_scale.precision import float32_region


class GroupTargets(nn.Module):
    """One target per group of levels; nothing here is trained.

    Args:
        groups: group name -> its levels; a group's channels are concatenated in this order.
        grid: tokens per side of the backbone.
        spatial_norm: share of the token mean removed, or None for raw targets. Acts at the full
            grid, before pooling.
        grids: tokens per side that each group is compared on, in the order of the groups; None
            for the backbone's own.
        whitening: level -> its whitening; others stay as they are.
        of_another: give each picture the targets of another picture of its micro-batch. A
            scientific control: any gain that remains does not come from what the targets say.

    Raises:
        UserError: a group's grid is finer than the backbone's, or a group would be left with
            nothing.
    """

    def __init__(
        self,
        groups: Mapping[str, Sequence[str]],
        grid: int,
        spatial_norm: float | None,
        *,
        grids: Sequence[int] | None = None,
        whitening: Mapping[str, Whitening] | None = None,
        of_another: bool = False,
    ) -> None:
        super().__init__()
        self.groups = {name: tuple(levels) for name, levels in groups.items()}
        self.grid = grid
        self.spatial_norm = spatial_norm
        self.grids = tuple(grids or [grid] * len(self.groups))
        self.of_another = of_another
        self._whitened = list(whitening or {})
        # A list, because level names hold dots, and module names must not.
        self.whitening = nn.ModuleList((whitening or {}).values())
        self.register_load_state_dict_pre_hook(_refuse_other_whitening)
        for name, side in zip(self.groups, self.grids, strict=True):
            if not 1 <= side <= grid:
                raise UserError(f"group {name!r}: a grid of {side} must lie between 1 and {grid}")
            if side == 1 and spatial_norm == 1:
                raise UserError(
                    f"group {name!r}: a grid of 1 keeps only the token mean, which spatial_norm 1 "
                    "removes"
                )

    @torch.no_grad()
    def forward(self, batch: Mapping[str, Tensor]) -> list[Tensor]:
        """Builds the targets.

        Args:
            batch: holds ``prior.<level>`` maps ``[B, C, H, W]`` for every level of every group.

        Returns:
            Float32 targets ``[B, N_g, C_g]`` in the order of the groups.

        Raises:
            UserError: targets of another picture, and there is only one.
        """
        targets = []
        for levels, side in zip(self.groups.values(), self.grids, strict=True):
            target_BNC = torch.cat([self._level(batch, level) for level in levels], dim=-1)
            if self.spatial_norm is not None:
                target_BNC = spatial_normalise(target_BNC, self.spatial_norm)
            targets.append(self._exchanged(pool_tokens(target_BNC, side)))
        return targets

    def _level(self, batch: Mapping[str, Tensor], level: str) -> Tensor:
        target_BNC = level_tokens(batch, level, self.grid)
        if level not in self._whitened:
            return target_BNC
        with float32_region(target_BNC):
            whitened: Tensor = self.whitening[self._whitened.index(level)](target_BNC)
            return whitened

    def _exchanged(self, target_BNC: Tensor) -> Tensor:
        if not self.of_another:
            return target_BNC
        if target_BNC.shape[0] < 2:
            raise UserError("targets of another picture need micro-batches of at least 2 pictures")
        return target_BNC.roll(1, dims=0)


def _refuse_other_whitening(
    module: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, *_: object
) -> None:
    start, end = f"{prefix}whitening.", ".matrix_CK"
    there = {k: v.shape[1] for k, v in state_dict.items() if k.startswith(start) if k.endswith(end)}
    here = {f"{prefix}{k}": v.shape[1] for k, v in module.state_dict().items() if k.endswith(end)}
    if there != here:
        raise UserError(
            f"the checkpoint's targets are whitened to {max(there.values(), default=None)} "
            f"dimensions, this run's to {max(here.values(), default=None)}; set alignment.whiten "
            "back to resume, or start a new run"
        )


def group_targets(
    batch: Mapping[str, Tensor], groups: Mapping[str, Sequence[str]], grid: int, alpha: float | None
) -> list[Tensor]:
    """One target per group of levels at the backbone's own grid.

    Args:
        batch: holds ``prior.<level>`` maps ``[B, C, H, W]`` for every level of every group.
        groups: group name -> its levels; a group's channels are concatenated in this order.
        grid: tokens per side of the backbone.
        alpha: share of the mean removed by the spatial normalisation, or None for raw targets.

    Returns:
        A list of G float32 targets ``[B, N, C_g]`` in the order of `groups`.
    """
    targets: list[Tensor] = GroupTargets(groups, grid, alpha)(batch)
    return targets
