# SPDX-License-Identifier: Apache-2.0
"""Where pictures come from: a folder with one sub-folder per class, or the drawn demo pictures.

Shapes: H W the cropped picture's sides (equal), C feature channels, g the token grid's side.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ahpa_scale import storage
from ahpa_scale.data import demo
from ahpa_scale.data.demo import DemoSpec
from ahpa_scale.data.features import read_features
from ahpa_scale.data.pictures.crop import center_crop
from ahpa_scale.data.pictures.decode import open_image, read_square
from ahpa_scale.data.pictures.files import shown
from ahpa_scale.data.pictures.listing import Listing
from ahpa_scale.data.pictures.rejects import Rejects
from ahpa_scale.data.settings import DEMO
from ahpa_scale.errors import UserError

__all__ = ["DemoSource", "FolderSource", "Picture", "Source", "center_crop", "open_image"]


@dataclass(frozen=True)
class Picture:
    """One cropped picture.

    Attributes:
        name: file path below the source, or the demo's index.
        image_HWC: uint8 RGB.
        label: class index.
        external_Cgg: float32 features of another encoder, where the source has them.
    """

    name: str
    image_HWC: NDArray[np.uint8]
    label: int
    external_Cgg: NDArray[np.float32] | None = None


class Source(Protocol):
    """A finite, ordered set of pictures; `read` may be called from several threads."""

    classes: tuple[str, ...]
    description: str
    external_channels: int | None

    def __len__(self) -> int: ...

    def read(self, position: int) -> Picture:
        """The picture at this position; UnreadablePictureError if it cannot be read."""
        ...


class FolderSource:
    """Pictures in class sub-folders, sorted by name; deeper folders belong to their class.

    Args:
        root: folder whose sub-folders are the classes.
        size: side of the cropped pictures.
        grid: token grid that external features must have; otherwise unused.
        features: folder with one `.npy` per picture under the same relative path.
        shuffle_seed: seed of the pictures' order; it mixes the classes within every shard.
        limit: keep this many pictures of the shuffled order.

    Raises:
        UserError: no such folder, no classes, an empty class, or missing features.
    """

    def __init__(
        self,
        root: str,
        *,
        size: int,
        grid: int = 1,
        features: str | None = None,
        shuffle_seed: int = 0,
        limit: int | None = None,
    ) -> None:
        self.root = _existing_folder(root)
        self.listing = Listing(self.root, classes=True)
        self.classes = self.listing.classes
        self.description = f"folder {self.root.name}"
        self._files = [
            (name, label) for label, names in enumerate(self.listing.names) for name in names
        ]
        random.Random(shuffle_seed).shuffle(self._files)
        del self._files[limit if limit is not None else len(self._files) :]
        self._size, self._grid = size, grid
        self._features = _existing_folder(features) if features is not None else None
        self.external_channels = None
        if self._features is not None:
            self.external_channels = len(self._external(self._files[0][0]))

    def __len__(self) -> int:
        return len(self._files)

    @property
    def names(self) -> list[str]:
        """Paths of the pictures below the root, in order."""
        return [name for name, _ in self._files]

    def remarks(self, rejects: Rejects) -> list[str]:
        """Lines for the user about the folder, after a pass that had these rejects."""
        told = [f"not looked at: {self.listing.left_out}"] if self.listing.left_out else []
        planned = Counter(label for _, label in self._files)
        lost = Counter(label for name, label in self._files if name in rejects)
        return told + [
            f"class {shown(self.classes[label])} has no picture left: none can be read"
            for label, count in sorted(lost.items())
            if count == planned[label]
        ]

    def read(self, position: int) -> Picture:
        """Read and crop one picture, and its features where asked for.

        Raises:
            UnreadablePictureError: the picture cannot be read.
            UserError: its features cannot be read, or do not fit.
        """
        name, label = self._files[position]
        image_HWC = read_square(self.root, name, self._size)
        external_Cgg = self._external(name) if self._features is not None else None
        return Picture(name, image_HWC, label, external_Cgg)

    def _external(self, name: str) -> NDArray[np.float32]:
        assert self._features is not None
        path = (self._features / name).with_suffix(".npy")
        features = read_features(path, self._grid)
        if self.external_channels not in (None, len(features)):
            raise UserError(
                f"{path} has {len(features)} feature channels, others {self.external_channels}"
            )
        return features


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


def _existing_folder(path: str) -> Path:
    folder = storage.local_path(path)
    if folder.is_dir() and os.access(folder, os.R_OK | os.X_OK):
        return folder
    if folder.exists():
        raise UserError(f"{folder} is not a folder that can be read")
    near = _nearest(folder)
    raise UserError(f"no folder {folder}" + (f": did you mean {near}?" if near else ""))


def _nearest(folder: Path) -> str | None:
    if get_close_matches(str(folder), [DEMO], cutoff=0.7):
        return f"'{DEMO}'"
    try:
        names: Sequence[str] = [p.name for p in folder.parent.iterdir() if p.is_dir()]
    except OSError:
        return None
    match = get_close_matches(folder.name, names, n=1)
    return str(folder.parent / match[0]) if match else None
