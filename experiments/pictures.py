# SPDX-License-Identifier: Apache-2.0
"""A recipe's pictures as arrays: training and test part, and the oracle's maps where there is one.

Shapes: N pictures, H W their sides, C oracle channels, g the token grid's side.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ahpa_scale.data import idx
from ahpa_scale.data.demo import DemoSpec, class_names, render
from ahpa_scale.data.sources import FolderSource, oracle_maps
from ahpa_scale.errors import UserError
from experiments.recipes import Common, DemoRecipe, FashionRecipe, FolderRecipe

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Pictures:
    """One part of a data set.

    Attributes:
        images_NHWC: uint8 [N, S, S, 3].
        labels_N: int64 [N].
        oracle_NCgg: float16 [N, C, g, g], the factor maps behind drawn pictures; None otherwise.
    """

    images_NHWC: NDArray[np.uint8]
    labels_N: NDArray[np.int64]
    oracle_NCgg: NDArray[np.float16] | None = None

    def __len__(self) -> int:
        return len(self.images_NHWC)

    def save(self, folder: Path, split: str) -> None:
        """Write `<split>_<part>.npy`."""
        for name, array in self._arrays().items():
            np.save(folder / f"{split}_{name}.npy", array)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        arrays: dict[str, NDArray[Any]] = {"images": self.images_NHWC, "labels": self.labels_N}
        return arrays if self.oracle_NCgg is None else {**arrays, "oracle": self.oracle_NCgg}

    @classmethod
    def load(cls, folder: Path, split: str) -> Pictures:
        """Memory-mapped pictures."""

        def read(name: str) -> Any:
            path = folder / f"{split}_{name}.npy"
            if not path.exists():
                return None
            return np.load(path, mmap_mode="r", allow_pickle=False)

        return cls(read("images"), np.array(read("labels")), read("oracle"))


def collect(recipe: Common, grid: int) -> tuple[dict[str, Pictures], list[str]]:
    """Both parts of a recipe's pictures, and the class names.

    Raises:
        UserError: the input is missing, damaged or too small.
    """
    if isinstance(recipe, FashionRecipe):
        return _fashion(recipe), list(idx.NAMES["fashion"])
    if isinstance(recipe, DemoRecipe):
        spec = recipe.demo_spec()
        return _demo(recipe, spec, grid), class_names(spec)
    assert isinstance(recipe, FolderRecipe)
    return _folder(recipe)


def _fashion(recipe: FashionRecipe) -> dict[str, Pictures]:
    limits = dict(zip(SPLITS, (recipe.count, recipe.test_count), strict=True))
    return {
        split: Pictures(
            np.repeat(images_NHW[: limits[split], ..., None], 3, axis=3),
            labels_N[: limits[split]].astype(np.int64),
        )
        for split, (images_NHW, labels_N) in idx.load_idx(recipe.folder, side=recipe.size).items()
    }


def _demo(recipe: DemoRecipe, spec: DemoSpec, grid: int) -> dict[str, Pictures]:
    assert recipe.count is not None
    assert recipe.test_count is not None
    train = range(recipe.count)
    test = range(recipe.count, recipe.count + recipe.test_count)
    return {
        "train": _drawn(spec, recipe.seed, train, grid),
        "test": _drawn(spec, recipe.seed, test, grid),
    }


def _drawn(spec: DemoSpec, seed: int, indices: range, grid: int) -> Pictures:
    images, labels, maps = [], [], []
    for index in indices:
        picture = render(spec, seed, index)
        images.append(picture.image)
        labels.append(picture.label)
        maps.append(oracle_maps(spec, picture, grid).astype(np.float16))
    return Pictures(np.stack(images), np.array(labels, np.int64), np.stack(maps))


def _folder(recipe: FolderRecipe) -> tuple[dict[str, Pictures], list[str]]:
    source = FolderSource(recipe.folder, size=recipe.size)
    limits = dict(zip(SPLITS, (recipe.count, recipe.test_count), strict=True))
    images: dict[str, list[NDArray[np.uint8]]] = {split: [] for split in SPLITS}
    labels: dict[str, list[int]] = {split: [] for split in SPLITS}
    for position, name in enumerate(source.names):
        split = "test" if _share(name) < recipe.test_share else "train"
        if limits[split] is None or len(labels[split]) < limits[split]:  # type: ignore[operator]
            picture = source.read(position)
            images[split].append(picture.image_HWC)
            labels[split].append(picture.label)
    for split in SPLITS:
        if len(labels[split]) < 8:
            raise UserError(
                f"{recipe.folder}: {len(labels[split])} {split} pictures are too few; 8 are needed"
            )
    parts = {s: Pictures(np.stack(images[s]), np.array(labels[s], np.int64)) for s in SPLITS}
    return parts, list(source.classes)


def _share(name: str) -> float:
    """A number in [0, 1) that depends on the picture's name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
