# SPDX-License-Identifier: Apache-2.0
"""Encoder levels of the clean image -> alignment targets on the backbone's token grid.

Legend: B batch, C channels, H W map height and width, N tokens (grid * grid), G levels.
Everything here is a function of the clean image only, so nothing carries a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ahpa_scale.level_names import PRIOR_PREFIX, source_of


def pool_to_grid(map_BCHW: Tensor, grid: int) -> Tensor:
    """Averages a feature map over the cells of the token grid.

    Args:
        map_BCHW: feature map of any floating dtype.
        grid: tokens per side.

    Returns:
        Tokens ``[B, grid * grid, C]`` in float32, row-major as the backbone's own tokens.
    """
    pooled_BCgg = map_BCHW.float()
    if map_BCHW.shape[-2:] != (grid, grid):
        pooled_BCgg = F.adaptive_avg_pool2d(pooled_BCgg, grid)
    return pooled_BCgg.flatten(2).transpose(1, 2)


def patchify(map_BCHW: Tensor, grid: int) -> Tensor:
    """Folds the pixels under each token into channels, so that no detail is averaged away.

    Used for the latent, which the backbone itself reads in exactly these patches; a side that
    the grid does not divide falls back to :func:`pool_to_grid`.

    Returns:
        Tokens ``[B, grid * grid, C * p * p]`` in float32, with p = H // grid.
    """
    side = map_BCHW.shape[-1]
    if side % grid:
        return pool_to_grid(map_BCHW, grid)
    return F.pixel_unshuffle(map_BCHW.float(), side // grid).flatten(2).transpose(1, 2)


def spatial_normalise(target_BNC: Tensor, alpha: float, eps: float = 1e-6) -> Tensor:
    """Removes a share of each channel's mean over the tokens and divides by the standard deviation.

    ``y = (F - alpha * mean_tokens(F)) / (std_tokens(F) + eps)`` (iREPA, arXiv 2512.10794, spatial
    normalisation): the result is how the tokens of one picture differ, not what they have in
    common.

    Args:
        target_BNC: float32 targets.
        alpha: share of the mean to remove, 0 to 1.
    """
    std_B1C, mean_B1C = torch.std_mean(target_BNC, dim=1, keepdim=True, correction=0)
    return (target_BNC - alpha * mean_B1C) / (std_B1C + eps)


def level_tokens(batch: Mapping[str, Tensor], level: str, grid: int) -> Tensor:
    """One level's map as float32 tokens ``[B, grid * grid, C]``; some, such as the latent, in the
    backbone's own patches.
    """
    fold = patchify if source_of(level).patched else pool_to_grid
    return fold(batch[PRIOR_PREFIX + level], grid)


def pool_tokens(tokens_BNC: Tensor, grid: int) -> Tensor:
    """Averages tokens ``[B, N, C]`` over the cells of a coarser grid, to ``[B, grid * grid, C]``.

    N must be a square number. On their own grid the tokens come back unchanged. A grid of 1 is
    their mean.
    """
    side = math.isqrt(tokens_BNC.shape[1])
    if grid == side:
        return tokens_BNC
    if side % grid:
        map_BCHW = tokens_BNC.transpose(1, 2).unflatten(2, (side, side))
        return F.adaptive_avg_pool2d(map_BCHW, grid).flatten(2).transpose(1, 2)
    cell = side // grid
    return tokens_BNC.unflatten(1, (grid, cell, grid, cell)).mean(dim=(2, 4)).flatten(1, 2)
