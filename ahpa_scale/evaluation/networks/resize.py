# SPDX-License-Identifier: Apache-2.0
"""Resizes pictures for feature networks without aliasing (Parmar et al. 2022, arXiv 2104.11222).

Shapes: B batch, S the picture's side.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def resized(images_B3SS: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Pictures in the size of a network's input.

    Args:
        images_B3SS: uint8 [B, 3, S, S].
        size: height and width.
        mode: ``bicubic`` or ``bilinear``.

    Returns:
        float32 [B, 3, height, width] within 0 to 255.
    """
    x_B3SS = images_B3SS.float()
    if x_B3SS.shape[2:] == size:
        return x_B3SS
    x_B3SS = F.interpolate(x_B3SS, size=size, mode=mode, antialias=True, align_corners=False)
    return x_B3SS.clamp(0, 255)
