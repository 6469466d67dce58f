# SPDX-License-Identifier: Apache-2.0
"""The scores of a built data set's pictures, the labels for samples, and the floors.

Shapes: N pictures, S their sides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ahpa_scale.models.vae import FrozenVAE
from experiments.datasets import DataFolder
from experiments.judges import load_demo_reference, load_reference, to_pictures
from experiments.pictures import SPLITS
from experiments.recipes import DemoRecipe

Score = Callable[[Tensor, Tensor | None], dict[str, float]]


def scorer(data: DataFolder) -> Score:
    """Every score of a data set, for uint8 pictures [N, 3, S, S] and labels [N] or None."""
    judges: list[Any] = [load_reference(data.reference)]
    if isinstance(data.recipe, DemoRecipe):
        judges.append(load_demo_reference(data.demo_reference))

    def score(images_N3SS: Tensor, labels_N: Tensor | None) -> dict[str, float]:
        scores: dict[str, float] = {}
        for judge in judges:
            scores.update(judge.score(images_N3SS, labels_N))
        return scores

    return score


def sample_labels(data: DataFolder, count: int) -> NDArray[np.int64]:
    """Labels in the training part's proportions, spread evenly; the same in every run."""
    ordered = np.sort(data.part("train").labels_N)
    places = ((np.arange(count) + 0.5) * len(ordered) / count).astype(np.int64)
    # A stride that shares no factor with the count mixes the classes, so that any first part of
    # the samples holds them all.
    stride = next(s for s in range(int(count * 0.618), 2 * count) if np.gcd(s, count) == 1)
    return ordered[places][(np.arange(count) * stride) % count]


def facts(data: DataFolder, floor_count: int) -> dict[str, Any]:
    """Facts about a built data set: sizes, the judge's accuracy, and the floors: the scores of
    `floor_count` test pictures and of their reconstructions.
    """
    test = data.part("test")
    images_N3SS = to_pictures(np.array(test.images_NHWC[:floor_count]))
    labels_N = torch.from_numpy(test.labels_N[:floor_count])
    again_N3SS = _reconstructions(FrozenVAE.from_pretrained(data.vae), images_N3SS)
    score = scorer(data)
    return {
        "classes": data.classes,
        "counts": {split: len(data.part(split)) for split in SPLITS},
        "judge_accuracy": load_reference(data.reference).judge_accuracy,
        "floors": {
            "real": score(images_N3SS, labels_N),
            "reconstruction": score(again_N3SS, labels_N),
        },
    }


def _reconstructions(vae: FrozenVAE, images_N3SS: Tensor) -> Tensor:
    return torch.cat([vae.decode(vae.encode(part).mean_BCHW) for part in images_N3SS.split(128)])
