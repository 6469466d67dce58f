# SPDX-License-Identifier: Apache-2.0
"""Space to depth: a level's positions under one token become channels of that token.

Legend: B batch, C channels, H W map height and width, g token grid, p positions per side of a
token, P = p * p.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def positions(side: int, grid: int) -> int:
    """p, the positions of a map along one side of a token; 1 where the map is coarser."""
    return max(1, side // grid)


def fit_to_grid(map_BCHW: Tensor, grid: int) -> Tensor:
    """A square map as float32 ``[B, C, p * g, p * g]``, so that each token has p * p positions.

    A map that is coarser than the grid is interpolated. One whose side the grid does not divide is
    averaged to the largest side below that it divides.
    """
    side = map_BCHW.shape[-1]
    fitting = positions(side, grid) * grid
    map_BCHW = map_BCHW.float()
    if side == fitting:
        return map_BCHW
    if side < grid:
        return F.interpolate(map_BCHW, (grid, grid), mode="bilinear", align_corners=False)
    return F.adaptive_avg_pool2d(map_BCHW, fitting)


def folded_tokens(map_BCHW: Tensor, grid: int, token_N: Tensor) -> Tensor:
    """Some tokens of a folded map; the others are not copied.

    Args:
        map_BCHW: a square feature map of any floating dtype.
        grid: tokens per side.
        token_N: int64 ``[n]``, row-major positions on the grid.

    Returns:
        Float32 ``[B, n, C, P]``.
    """
    fitting_BCHW = fit_to_grid(map_BCHW, grid)
    cells_BCgpgp = fitting_BCHW.unflatten(3, (grid, -1)).unflatten(2, (grid, -1))
    token_N = token_N.to(map_BCHW.device)
    rows_N, columns_N = torch.div(token_N, grid, rounding_mode="floor"), token_N % grid
    # Indices around a slice put their own dimension first.
    chosen_NBCpp = cells_BCgpgp[:, :, rows_N, :, columns_N, :]
    return chosen_NBCpp.transpose(0, 1).flatten(3)
