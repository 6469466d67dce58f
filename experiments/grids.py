# SPDX-License-Identifier: Apache-2.0
"""Pictures to look at: 8 x 8 of a variant's samples, or of the real ones, as one PNG.

They are in ``samples/STUDY`` beside the rows.

Shapes: N pictures, S their sides.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from experiments.pictures import Pictures

GRID_SIDE = 8


def grid_name(dataset: str, variant: str, step: int) -> str:
    """File name of a variant's samples at a checkpoint."""
    return f"{dataset}-{variant}-{step}.png"


def real_grid_name(dataset: str) -> str:
    """File name of a data set's own pictures."""
    return f"{dataset}-real.png"


def save_grid(images_N3SS: Tensor, path: Path) -> None:
    """Write the first pictures, uint8 [N, 3, S, S], as one PNG."""
    from ahpa_scale.sampling.grid import image_grid, save_image

    save_image(image_grid(images_N3SS[: GRID_SIDE**2], GRID_SIDE), path)


def save_real_grid(real: Pictures, path: Path) -> None:
    """Write pictures of a data set, spread evenly over its order, as one PNG."""
    from experiments.judges import to_pictures

    count = min(GRID_SIDE**2, len(real))
    positions = np.arange(count) * len(real) // count
    save_grid(to_pictures(real.images_NHWC[positions]), path)
