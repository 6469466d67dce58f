# SPDX-License-Identifier: Apache-2.0
"""Crops a picture of any shape to its middle square, at one size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: Up to this ratio of its sides a picture is scaled as a whole, as in ADM.
_ORDINARY = 16


def center_crop(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Scale the short side to `size` and cut out the middle square, as uint8 [size, size, 3].

    The convention of ADM (Dhariwal & Nichol 2021, arXiv 2105.05233, guided-diffusion's image
    data set): halve with a box filter while the short side stays at least twice the target, then
    one bicubic step, then the central crop. Its published ImageNet statistics assume it.

    If the sides differ more than 16-fold, only the cut square is scaled: otherwise a strip one
    pixel wide would take gigabytes. The pixels are the same up to rounding.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    factor = size / min(image.size)
    scaled = (round(image.width * factor), round(image.height * factor))
    left, top = (scaled[0] - size) // 2, (scaled[1] - size) // 2
    square = (left, top, left + size, top + size)
    if max(image.size) > _ORDINARY * min(image.size):
        across, down = image.width / scaled[0], image.height / scaled[1]
        box = (square[0] * across, square[1] * down, square[2] * across, square[3] * down)
        return np.array(image.resize((size, size), Image.Resampling.BICUBIC, box=box))
    return np.array(image.resize(scaled, Image.Resampling.BICUBIC).crop(square))
