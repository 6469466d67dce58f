# SPDX-License-Identifier: Apache-2.0
"""Demo pictures of every preset as uint8 batches, for training and judging an autoencoder.

Shapes: P pool, B batch, S the picture's side.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from ahpa_scale.data.demo.render import render
from ahpa_scale.data.demo.spec import PRESETS, DemoSpec

Pixels = NDArray[np.uint8]

SIZES = (32, 64)
GREY = "grey objects"
_CHANNEL_ORDERS = np.array(list(permutations(range(3))))


def draw(spec: DemoSpec, seed: int, count: int, *, grey: bool = False) -> Pixels:
    """The first count pictures of a set, uint8 [count, 3, S, S]; grey: bare objects on black."""
    drawn = [render(spec, seed, index) for index in range(count)]
    pictures_BSS3 = np.stack([picture.image for picture in drawn])
    if grey:
        inside_BSS1 = np.stack([picture.maps["object"] > 0 for picture in drawn])[..., None]
        pictures_BSS3 = (pictures_BSS3 * inside_BSS1).mean(axis=3, keepdims=True).repeat(3, axis=3)
    return np.ascontiguousarray(pictures_BSS3.astype(np.uint8).transpose(0, 3, 1, 2))


def held_out(seed: int, size: int, count: int) -> dict[str, Pixels]:
    """`count` pictures per preset and as many of grey objects, from a seed not used in training."""
    sets = {name: draw(DemoSpec.preset(name, size=size), seed, count) for name in PRESETS}
    return sets | {GREY: draw(DemoSpec.preset("medium", size=size), seed, count, grey=True)}


class DemoMixture:
    """An endless, deterministic run of batches over all presets, two sizes, colour and grey.

    Pictures are drawn once; turning, mirroring and exchanging colour channels give each up to 48
    appearances, which costs less than drawing anew.

    Args:
        seed: which pictures are drawn and how batches are put together.
        pool: pictures per preset at the smaller size; the larger size has a quarter of that.
    """

    def __init__(self, seed: int, pool: int) -> None:
        self.seed = seed
        self._pools = [self._draw_pool(size, max(8, pool // 4**k)) for k, size in enumerate(SIZES)]

    def _draw_pool(self, size: int, count: int) -> Pixels:
        specs = [DemoSpec.preset(name, size=size) for name in PRESETS]
        parts = [draw(spec, self.seed, count) for spec in specs]
        parts.append(draw(specs[1], self.seed, count // 2, grey=True))
        return np.concatenate(parts)

    def batch(self, step: int, batch_size: int) -> Pixels:
        """Batch of a step: [batch_size, 3, 32, 32]; every fourth step, a quarter as many at 64.

        The two kinds hold the same number of pixels, so every step takes about the same time.
        """
        large = step % 4 == 3
        pool_P3SS = self._pools[1 if large else 0]
        count = max(1, batch_size // 4) if large else batch_size
        generator = np.random.default_rng([self.seed, step])
        batch_B3SS = pool_P3SS[generator.integers(len(pool_P3SS), size=count)]
        orders_B3 = _CHANNEL_ORDERS[generator.integers(len(_CHANNEL_ORDERS), size=count)]
        batch_B3SS = np.take_along_axis(batch_B3SS, orders_B3[:, :, None, None], axis=1)
        flips_3B111 = generator.random((3, count, 1, 1, 1)) < 0.5
        batch_B3SS = np.where(flips_3B111[0], batch_B3SS[..., ::-1], batch_B3SS)
        batch_B3SS = np.where(flips_3B111[1], batch_B3SS[..., ::-1, :], batch_B3SS)
        return np.where(flips_3B111[2], batch_B3SS.swapaxes(2, 3), batch_B3SS)
