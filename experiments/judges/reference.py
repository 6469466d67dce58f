# SPDX-License-Identifier: Apache-2.0
"""Everything needed to judge pictures against one data set, built once and kept in a folder.

Shapes: N pictures, S the picture's side, F features.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ahpa_scale import typed_json
from ahpa_scale.errors import UserError
from ahpa_scale.storage import atomic_folder, read_bytes
from ahpa_scale.tensor_files import save_tensors
from experiments.judges.classifier import Classifier, apply_in_batches, to_pictures
from experiments.judges.metrics import (
    FeatureStatistics,
    class_accuracy,
    frechet_distance,
    kernel_distance,
)
from experiments.judges.training import check_labels, train_classifier

_JUDGE, _TENSORS, _FACTS = "judge", "reference.safetensors", "reference.json"
_KEPT = ("mean", "covariance", "kernel")
_KERNEL_PICTURES = 5000
_KERNEL_SEED = 0


@dataclass(frozen=True)
class _Facts:
    """The content of the JSON file."""

    count: Annotated[int, Field(ge=2, lt=1 << 63)]
    judge_accuracy: Annotated[float, Field(ge=0, le=1)]
    size: Annotated[int, Field(ge=1, le=1 << 14)]

    __pydantic_config__ = typed_json.STRICT


@dataclass(frozen=True)
class Reference:
    """A data set's judge and the statistics of its real pictures.

    Attributes:
        judge: classifier trained on the real training part; nothing is ever aligned to it.
        train: feature statistics of the real training pictures; FD is measured against them.
        kernel_NF: float32 features of up to 5,000 training pictures; KID is measured against them.
        judge_accuracy: the judge's accuracy on the real test part.
        size: side of the pictures in pixels.
    """

    judge: Classifier
    train: FeatureStatistics
    kernel_NF: Tensor
    judge_accuracy: float
    size: int

    @property
    def num_classes(self) -> int:
        """Number of labels that the judge knows."""
        return self.judge.num_classes

    def score(self, images_N3SS: Tensor, labels_N: Tensor | None = None) -> dict[str, float]:
        """Judge pictures.

        The features are computed in float32 and the distances in float64; the same pictures give
        the same numbers. FD depends on N (fewer pictures give a larger FD): compare equal counts
        only.

        Args:
            images_N3SS: uint8 pictures, generated, reconstructed or real.
            labels_N: int64 classes they were made for; None for unconditional generation.

        Returns:
            ``fd`` (Frechet distance) and ``kid`` (kernel distance) to the real training pictures;
            with labels also ``accuracy``: the share that the judge puts into the requested class.

        Raises:
            UserError: wrong dtype or size, fewer than two pictures, or labels that do not fit.
        """
        self._check(images_N3SS)
        features_NF = apply_in_batches(self.judge.features, images_N3SS)
        scores = {
            "fd": frechet_distance(FeatureStatistics.of(features_NF), self.train),
            "kid": kernel_distance(features_NF, self.kernel_NF),
        }
        if labels_N is not None:
            scores["accuracy"] = class_accuracy(self.judge.head(features_NF), labels_N)
        return scores

    def _check(self, images_N3SS: Tensor) -> None:
        wanted = (3, self.size, self.size)
        if images_N3SS.dtype != torch.uint8 or tuple(images_N3SS.shape[1:]) != wanted:
            raise UserError(
                f"this reference judges uint8 pictures [N, 3, {self.size}, {self.size}],"
                f" got {images_N3SS.dtype} {list(images_N3SS.shape)}"
            )


def build_reference(
    images_NSS3: NDArray[np.uint8],
    labels_N: NDArray[np.integer],
    test_images_NSS3: NDArray[np.uint8],
    test_labels_N: NDArray[np.integer],
    out: str | Path,
    *,
    num_classes: int | None = None,
    steps: int = 2400,
    seed: int = 0,
    progress: bool = False,
) -> Reference:
    """Train the judge on the training part, measure both parts and write the result to a folder.

    Args:
        images_NSS3: uint8 [N, S, S, 3], the real training pictures.
        labels_N: their classes.
        test_images_NSS3: uint8 [M, S, S, 3], the real test pictures.
        test_labels_N: their classes.
        out: folder to make; it appears complete or not at all.
        num_classes: number of labels; None takes the largest training label + 1.
        steps: optimizer steps of the judge.
        seed: seed of the judge's training.
        progress: show a bar.

    Raises:
        FileExistsError: `out` is not empty.
        UserError: pictures and labels do not fit together, or the parts' sizes differ.
    """
    images_N3SS, test_images_N3SS = to_pictures(images_NSS3), to_pictures(test_images_NSS3)
    if images_N3SS.shape[1:] != test_images_N3SS.shape[1:]:
        raise UserError(
            f"training pictures are {list(images_NSS3.shape[1:])}"
            f" but test pictures {list(test_images_NSS3.shape[1:])}"
        )
    classes = int(np.max(labels_N, initial=0)) + 1 if num_classes is None else num_classes
    check_labels(test_labels_N, len(test_images_N3SS), classes)
    with atomic_folder(out) as room:
        judge = train_classifier(
            images_NSS3, labels_N, classes, steps=steps, seed=seed, progress=progress
        )
        features_NF = apply_in_batches(judge.features, images_N3SS)
        chosen = np.random.default_rng(_KERNEL_SEED).permutation(len(features_NF))
        logits_NK = apply_in_batches(judge.logits, test_images_N3SS)
        labels = torch.from_numpy(np.asarray(test_labels_N, np.int64))
        reference = Reference(
            judge,
            FeatureStatistics.of(features_NF),
            features_NF[torch.from_numpy(chosen[:_KERNEL_PICTURES])],
            class_accuracy(logits_NK, labels),
            images_N3SS.shape[-1],
        )
        _write(reference, room)
    return reference


def load_reference(folder: str | Path) -> Reference:
    """Read what `build_reference` wrote.

    Raises:
        UserError: no reference is there, or its files are damaged.
    """
    folder = Path(folder)
    try:
        content = read_bytes(folder / _FACTS, typed_json.LIMIT)
        facts = typed_json.parse_as(_Facts, content, str(folder / _FACTS))
        tensors = load_file(str(folder / _TENSORS))
        mean_F, covariance_FF, kernel_NF = (tensors[name] for name in _KEPT)
    except (OSError, SafetensorError, KeyError, UserError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"no reference can be read from {folder}: {reason}") from error
    judge = Classifier.load(folder / _JUDGE)
    features, pictures = judge.feature_dim, kernel_NF.shape[:1].numel()
    shapes = ((features,), (features, features), (pictures, features))
    for name, tensor, shape in zip(_KEPT, (mean_F, covariance_FF, kernel_NF), shapes, strict=True):
        fits = tensor.shape == shape and tensor.is_floating_point()
        if not fits or not bool(tensor.isfinite().all()):
            raise UserError(
                f"no reference can be read from {folder}: {name} must hold {list(shape)} finite "
                "numbers"
            )
    train = FeatureStatistics(mean_F, covariance_FF, facts.count)
    return Reference(judge, train, kernel_NF, facts.judge_accuracy, facts.size)


def _write(reference: Reference, room: Path) -> None:
    (room / _JUDGE).mkdir()
    reference.judge.write(room / _JUDGE)
    kept = (reference.train.mean_F, reference.train.covariance_FF, reference.kernel_NF)
    tensors = dict(zip(_KEPT, kept, strict=True))
    save_tensors({name: tensor.contiguous() for name, tensor in tensors.items()}, room / _TENSORS)
    facts = _Facts(reference.train.count, reference.judge_accuracy, reference.size)
    (room / _FACTS).write_text(json.dumps(asdict(facts), sort_keys=True) + "\n", encoding="utf-8")
