# SPDX-License-Identifier: Apache-2.0
"""Measures of generated pictures against real ones, from what a feature network says of both.

Inception score, kernel distance, precision and recall are torch-fidelity's. The Frechet distances
are `evaluation.frechet`'s, which stream.

Shapes: K kept pictures, F features, C classes.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ahpa_scale.evaluation.feature_sets import FeatureSet
from ahpa_scale.evaluation.frechet import FrechetDistance, Gaussian, Moments
from ahpa_scale.evaluation.networks.base import INCEPTION

#: The library's own subset size of the kernel distance; smaller if there are fewer pictures.
_KID_SUBSET = 1000
#: Neighbours of the manifolds (arXiv 1904.06991, section 3.1; ADM's evaluator takes as many).
_NEIGHBOURS = 3
#: Rows of the library's distance matrices: bounds its memory.
_ROWS = 1000
#: Parts of the set that the Inception score is averaged over; fewer if there are fewer pictures.
_SPLITS = 10
_SEED = 0
#: Fewer pictures than this get no interval.
_LEAST_FOR_INTERVAL = 100
_NO_PICTURES = "of one set only statistics are known, no pictures"


@dataclass(frozen=True)
class Measure:
    """One number.

    Attributes:
        name: as in `evaluation.jsonl`.
        title: for people.
        value: None if it can't be computed.
        interval: 95 % confidence interval over the generated pictures; None if there is none.
        reason: why there is no value; None if there is one.
    """

    name: str
    title: str
    value: float | None
    interval: tuple[float, float] | None = None
    reason: str | None = None


@dataclass(frozen=True)
class _Names:
    frechet: str
    spatial: str
    score: str
    kernel: str
    precision: str
    recall: str


_OF_INCEPTION = _Names("fid", "sfid", "inception_score", "kid", "precision", "recall")
_TITLES = {
    "fid": "FID",
    "sfid": "sFID",
    "inception_score": "IS",
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
}


def compare(
    made: FeatureSet, real: FeatureSet, device: torch.device | None = None
) -> list[Measure]:
    """All measures of one network.

    With Inception: FID, sFID (Nash et al. 2021, arXiv 2103.03841, section 5.1, with the features of
    ADM's evaluator), Inception score (arXiv 1606.03498), KID (arXiv 1801.01401), precision and
    recall (arXiv 1904.06991). With any other network `frechet_NAME`, `mmd_NAME` (with KID's
    kernel), `precision_NAME` and `recall_NAME`.

    Intervals of Frechet distances are those of the jackknife over `GROUPS` groups of the generated
    pictures (Efron and Tibshirani 1993, chapter 11): each group is left out once. Those of the
    Inception score and the kernel distance are over disjoint parts of the pictures.

    Args:
        made: the generated pictures, by `collect` with `GROUPS`.
        real: the pictures that they are compared with.
        device: where distances between pictures are computed; None: the CPU.
    """
    names = _names(made)
    device = device or torch.device("cpu")
    return [
        _frechet(names.frechet, made.pooled, real.pooled, made.repeats.get("pooled")),
        *_spatial(names, made, real),
        *_score(names, made),
        _kernel(names.kernel, made.kept_KF, real.kept_KF),
        *_manifolds(names, made.kept_KF, real.kept_KF, device),
    ]


class Distances:
    """The Frechet distances of one network from real pictures: those of `compare`.

    Args:
        real: the real pictures.
    """

    def __init__(self, real: FeatureSet) -> None:
        names = _names(real)
        self._from = {names.frechet: FrechetDistance(real.pooled)}
        if names.spatial and real.spatial is not None:
            self._from[names.spatial] = FrechetDistance(real.spatial)

    def __call__(self, made: FeatureSet) -> dict[str, float]:
        """The distances by name.

        Raises:
            UserError: the numbers of features differ.
        """
        found = zip(self._from.items(), (made.pooled, made.spatial), strict=False)
        return {name: distance(each) for (name, distance), each in found if each is not None}


def as_row(measures: Sequence[Measure]) -> dict[str, Any]:
    """The measures as keys of a row: each value, ``intervals`` and ``not_measured``."""
    row: dict[str, Any] = {measure.name: measure.value for measure in measures}
    row["intervals"] = {m.name: list(m.interval) for m in measures if m.interval is not None}
    row["not_measured"] = {m.name: m.reason for m in measures if m.reason is not None}
    return row


def title_of(name: str) -> str:
    """A measure's name for people, such as ``FID``."""
    return _TITLES.get(name, name.replace("_", " "))


def _names(features: FeatureSet) -> _Names:
    """Names of a network's measures. Only Inception has spatial features and classes."""
    network = str(features.facts["name"])
    if network == INCEPTION:
        return _OF_INCEPTION
    kinds = ("frechet", "mmd", "precision", "recall")
    frechet, kernel, precision, recall = (f"{kind}_{network}" for kind in kinds)
    return _Names(frechet, "", "", kernel, precision, recall)


def _frechet(name: str, made: Gaussian, real: Gaussian, repeats: Moments | None) -> Measure:
    distance = FrechetDistance(real)
    value, interval = distance(made), None
    if repeats is not None and repeats.count >= _LEAST_FOR_INTERVAL:
        left_out = [distance(repeats.gaussian(without=g)) for g in range(repeats.groups)]
        interval = _around(value, jackknife_error(left_out), repeats.groups)
    return Measure(name, title_of(name), value, interval)


def jackknife_error(left_out: Sequence[float]) -> float:
    """Standard error from the values with each of G groups left out.

    Efron and Tibshirani 1993, equation 11.5: the root of (G - 1) / G times the sum of squares.
    """
    count, mean = len(left_out), statistics.fmean(left_out)
    return math.sqrt((count - 1) / count * math.fsum((each - mean) ** 2 for each in left_out))


def _spatial(names: _Names, made: FeatureSet, real: FeatureSet) -> Iterator[Measure]:
    if not names.spatial:
        return
    if made.spatial is None or real.spatial is None:
        yield _missing(names.spatial, "the statistics of one set lack mu_s and sigma_s")
        return
    yield _frechet(names.spatial, made.spatial, real.spatial, made.repeats.get("spatial"))


def _score(names: _Names, made: FeatureSet) -> Iterator[Measure]:
    if not names.score:
        return
    if made.logits_KC is None:
        yield _missing(names.score, _NO_PICTURES)
        return
    from torch_fidelity.metric_isc import isc_features_to_metric

    splits = min(_SPLITS, len(made.logits_KC))
    told = isc_features_to_metric(made.logits_KC, splits=splits)
    value, interval = told["inception_score_mean"], None
    if len(made.logits_KC) >= _LEAST_FOR_INTERVAL:
        spread = told["inception_score_std"] * math.sqrt(splits / (splits - 1))
        interval = _around(value, spread / math.sqrt(splits), splits)
    yield Measure(names.score, title_of(names.score), value, interval)


def _kernel(name: str, made_KF: Tensor | None, real_KF: Tensor | None) -> Measure:
    if made_KF is None or real_KF is None:
        return _missing(name, _NO_PICTURES)
    from torch_fidelity.metric_kid import kid_features_to_metric

    fewest = min(len(made_KF), len(real_KF))
    size = min(_KID_SUBSET, fewest)
    told = kid_features_to_metric(made_KF, real_KF, kid_subset_size=size, verbose=False)
    value, interval = told["kernel_inception_distance_mean"], None
    if fewest >= _LEAST_FOR_INTERVAL:
        interval = _kernel_interval(value, made_KF.numpy(), real_KF.numpy())
    return Measure(name, title_of(name), value, interval)


def _kernel_interval(value: float, made_KF: Any, real_KF: Any) -> tuple[float, float]:
    """From disjoint parts: the estimate is unbiased for any number of pictures."""
    from torch_fidelity.metric_kid import kernel_mmd

    fewest = min(len(made_KF), len(real_KF))
    parts = max(_SPLITS, fewest // _KID_SUBSET)
    draws = np.random.default_rng(_SEED)  # files lie in the order of their classes
    shuffled = (each_KF[draws.permutation(len(each_KF))] for each_KF in (made_KF, real_KF))
    halves = (np.array_split(each_KF[:fewest], parts) for each_KF in shuffled)
    estimates = [float(kernel_mmd(made, real)) for made, real in zip(*halves, strict=True)]
    return _around(value, statistics.stdev(estimates) / math.sqrt(parts), parts)


def _manifolds(
    names: _Names, made_KF: Tensor | None, real_KF: Tensor | None, device: torch.device
) -> Iterator[Measure]:
    both = (names.precision, names.recall)
    if made_KF is None or real_KF is None:
        yield from (_missing(name, _NO_PICTURES) for name in both)
        return
    if min(len(made_KF), len(real_KF)) <= _NEIGHBOURS:
        yield from (_missing(name, f"it needs more than {_NEIGHBOURS} pictures") for name in both)
        return
    from torch_fidelity.metric_prc import prc_features_to_metric

    told = prc_features_to_metric(
        made_KF.to(device),
        real_KF.to(device),
        prc_neighborhood=_NEIGHBOURS,
        prc_batch_size=_ROWS,
        save_cpu_ram=True,
        verbose=False,
    )
    for name, key in zip(both, ("precision", "recall"), strict=True):
        yield Measure(name, title_of(name), told[key])


def _missing(name: str, reason: str) -> Measure:
    return Measure(name, title_of(name), None, reason=reason)


def _around(value: float, error: float, repeats: int) -> tuple[float, float]:
    """Student's 95 % interval."""
    from scipy.stats import t as student

    half = float(student.ppf(0.975, repeats - 1)) * error
    return value - half, value + half
