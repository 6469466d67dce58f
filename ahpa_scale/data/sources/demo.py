# SPDX-License-Identifier: Apache-2.0
"""The drawn demo pictures as a source.

Shapes: C feature channels, g the token grid's side.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ahpa_scale.data import demo
from ahpa_scale.data.demo import DemoSpec
from ahpa_scale.data.sources.base import Picture
from ahpa_scale.errors import UserError


class DemoSource:
    """Pictures drawn by `ahpa_scale.data.demo`, each from (seed, index) alone.

    Args:
        preset: difficulty, a name that `DemoSpec.preset` accepts.
        size: side of the pictures.
        grid: token grid of the oracle's maps.
        num_samples: number of pictures.
        seed: seed of the drawings.
        start: first index; a second split starts where the first ends.
        oracle: whether the pictures' own maps are given as external features.
    """

    def __init__(
        self,
        preset: str,
        *,
        size: int,
        grid: int,
        num_samples: int,
        seed: int = 0,
        start: int = 0,
        oracle: bool = False,
    ) -> None:
        self.spec = demo.DemoSpec.preset(preset, size=size)
        self.classes = tuple(demo.class_names(self.spec))
        last = start + num_samples - 1
        self.description = f"demo {preset}, seed {seed}, pictures {start} to {last}"
        self._num_samples, self._seed, self._start = num_samples, seed, start
        self._grid, self._oracle = grid, oracle
        self.external_channels = None
        if oracle:
            if size % grid:
                raise UserError(f"the oracle needs a size that grid {grid} divides, not {size}")
            self.external_channels = sum(count for _, count in _map_sizes(self.spec))

    def __len__(self) -> int:
        return self._num_samples

    def read(self, position: int) -> Picture:
        """Draw one picture."""
        index = self._start + position
        drawn = demo.render(self.spec, self._seed, index)
        external_Cgg = None
        if self._oracle:
            external_Cgg = oracle_maps(self.spec, drawn, self._grid)
        return Picture(str(index), drawn.image, drawn.label, external_Cgg)


def oracle_maps(spec: DemoSpec, drawn: demo.DemoPicture, grid: int) -> NDArray[np.float32]:
    """Share of each object, shape and texture in every cell of a drawn picture, float32
    [C, grid, grid].
    """
    maps = [pooled_one_hot(drawn.maps[name], count, grid) for name, count in _map_sizes(spec)]
    return np.concatenate(maps)


def pooled_one_hot(map_HW: NDArray[np.uint8], count: int, grid: int) -> NDArray[np.float32]:
    """Share of each of `count` values in every grid cell, float32 [count, grid, grid]."""
    onehot_CHW = (map_HW[None] == np.arange(count)[:, None, None]).astype(np.float32)
    cell = map_HW.shape[0] // grid
    pooled = onehot_CHW.reshape(count, grid, cell, grid, cell).mean(axis=(2, 4))
    return pooled.astype(np.float32)


def _map_sizes(spec: DemoSpec) -> tuple[tuple[str, int], ...]:
    """The demo's maps and how many values each can take; 0 is the background in all."""
    sizes = {"object": spec.objects[1], "shape": spec.num_shapes, "texture": spec.num_textures}
    return tuple((name, 1 + size) for name, size in sizes.items())
