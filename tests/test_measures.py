# SPDX-License-Identifier: Apache-2.0
"""Measures of two sets against independent computations on the same features, and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch.nn.functional import softplus

from ahpa_scale.errors import UserError
from ahpa_scale.evaluation import feature_sets
from ahpa_scale.evaluation.feature_sets import GROUPS, Collector, FeatureSet, collect
from ahpa_scale.evaluation.frechet import FrechetDistance, Gaussian, Moments
from ahpa_scale.evaluation.measures import Distances, as_row, compare, jackknife_error
from ahpa_scale.evaluation.networks import Features
from experiments import judges

WIDTH, SIDE = 48, 8


class Projection:
    """A network of one layer, under the name that has all measures."""

    def __init__(self, name: str = "inception") -> None:
        self.facts = {"name": name, "weights": "0", "preprocessing": "none"}
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(3 * SIDE * SIDE, WIDTH, generator=generator) / 10

    def __call__(self, images_B3SS: torch.Tensor) -> Features:
        x_BF = softplus((images_B3SS.flatten(1).float() - 128) / 40 @ self.weight)
        return Features(x_BF, x_BF[:, :20].sqrt(), 2 * x_BF[:, :30])


class Pooling(Projection):
    """A network without classes and spatial features."""

    def __call__(self, images_B3SS: torch.Tensor) -> Features:
        return Features(super().__call__(images_B3SS).pooled_BF)


def pictures(count: int, seed: int, contrast: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 2, 2, generator=generator).repeat_interleave(4, 2)
    fine = torch.randn(count, 3, SIDE, SIDE, generator=generator)
    grey = 128 + contrast * (40 * coarse.repeat_interleave(4, 3) + 25 * fine)
    return grey.clamp(0, 255).to(torch.uint8)


MADE, REAL = pictures(400, 1, contrast=0.8), pictures(500, 2)


@pytest.fixture(scope="module")
def both() -> tuple[FeatureSet, FeatureSet]:
    (made,) = collect([Projection()], MADE.split(64), GROUPS)
    (real,) = collect([Projection()], REAL.split(100))
    return made, real


@pytest.fixture(scope="module")
def values(both) -> dict[str, float]:
    return {measure.name: measure.value for measure in compare(*both)}


def frechet_by_scipy(x_NF: np.ndarray, y_NF: np.ndarray) -> float:
    """As ADM's evaluator computes it."""
    a, b = np.cov(x_NF, rowvar=False), np.cov(y_NF, rowvar=False)
    apart = np.square(x_NF.mean(0) - y_NF.mean(0)).sum()
    return float(apart + np.trace(a) + np.trace(b) - 2 * np.trace(sqrtm(a @ b)).real)


def features(images: torch.Tensor, part: str) -> np.ndarray:
    return getattr(Projection()(images), part).double().numpy()


@pytest.mark.parametrize(("name", "part"), [("fid", "pooled_BF"), ("sfid", "spatial_BP")])
def test_frechet_distances_are_those_of_scipy_and_of_the_librarys(values, name, part):
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    made, real = features(MADE, part), features(REAL, part)
    assert values[name] == pytest.approx(frechet_by_scipy(made, real), rel=1e-6)
    told = [fid_features_to_statistics(torch.from_numpy(each)) for each in (made, real)]
    library = fid_statistics_to_metric(*told, verbose=False)["frechet_inception_distance"]
    assert values[name] == pytest.approx(library, rel=1e-6)
    judged = [judges.FeatureStatistics.of(torch.from_numpy(each)) for each in (made, real)]
    assert values[name] == pytest.approx(judges.frechet_distance(*judged), rel=1e-6)
    assert values[name] > 0.05


def test_distances_of_ranks_together_are_those_of_the_whole_set(both, values):
    """As a run measures them: each rank has some of the pictures, and none keeps features."""
    ranks = [Collector(Projection(), keep=False) for _ in range(2)]
    for rank, collector in enumerate(ranks):
        collector.add(MADE[rank::2], torch.arange(rank, len(MADE), 2))
    others: list[torch.Tensor] = []
    ranks[1].add_up(others.append)
    ranks[0].add_up(lambda sums: sums.add_(others.pop(0)))
    found = Distances(both[1])(ranks[0].done())
    assert found == pytest.approx({name: values[name] for name in ("fid", "sfid")}, rel=1e-9)


def test_the_inception_score_is_that_of_its_formula(both, values):
    """Salimans et al. 2016, arXiv 1606.03498, section 4; ten splits."""
    order_N = np.random.RandomState(2020).permutation(len(MADE))
    logits_NC = both[0].logits_KC.double().numpy()[order_N]
    p = np.exp(logits_NC) / np.exp(logits_NC).sum(1, keepdims=True)
    scores = []
    for split in range(10):
        part = p[split * len(p) // 10 : (split + 1) * len(p) // 10]
        divergence = part * (np.log(part) - np.log(part.mean(0, keepdims=True)))
        scores.append(np.exp(divergence.sum(1).mean()))
    assert values["inception_score"] == pytest.approx(np.mean(scores), rel=1e-6)
    assert values["inception_score"] > 1.05


def test_kid_is_that_of_its_formula_on_the_same_subsets(both, values):
    """Binkowski et al. 2018, arXiv 1801.01401, equation 4."""
    made, real = (each.kept_KF.double().numpy() for each in both)
    draws, size, estimates = np.random.RandomState(2020), 400, []
    for _ in range(100):
        x = made[draws.choice(len(made), size, replace=False)]
        y = real[draws.choice(len(real), size, replace=False)]
        xx, yy, xy = ((a @ b.T / WIDTH + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
        within = (xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)) / (size * (size - 1))
        estimates.append(within - 2 * xy.mean())
    assert values["kid"] == pytest.approx(np.mean(estimates), rel=1e-3)


def test_precision_and_recall_are_those_of_their_definition(both, values):
    """Kynkaanniemi et al. 2019, arXiv 1904.06991, equation 2, with three neighbours."""
    made, real = (each.kept_KF.double().numpy() for each in both)

    def apart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.sqrt(np.square(x[:, None] - y[None]).sum(2))

    def share_within(x: np.ndarray, y: np.ndarray) -> float:
        radius = np.sort(apart(y, y), axis=1)[:, 3]
        return float((apart(x, y) <= radius).any(1).mean())

    assert values["precision"] == pytest.approx(share_within(made, real), rel=1e-3)
    assert values["recall"] == pytest.approx(share_within(real, made), rel=1e-3)
    assert 0.1 < values["recall"] < 1


def test_the_distance_between_gaussians_is_the_closed_form():
    """Dowson and Landau 1982: of covariances that commute, the roots subtract."""
    turn_FF = torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64))[0]
    a_F, b_F = torch.rand(40, dtype=torch.float64) + 0.1, torch.rand(40, dtype=torch.float64) + 0.1
    mean_F = torch.rand(40, dtype=torch.float64)
    a = Gaussian(mean_F, turn_FF @ torch.diag(a_F) @ turn_FF.T)
    b = Gaussian(mean_F + 0.5, turn_FF @ torch.diag(b_F) @ turn_FF.T)
    closed = 40 * 0.25 + (a_F.sqrt() - b_F.sqrt()).square().sum()
    assert FrechetDistance(b)(a) == pytest.approx(float(closed), rel=1e-6)
    assert FrechetDistance(a)(a) == pytest.approx(0, abs=1e-9)
    one, other = (Gaussian(torch.full((1,), m), torch.full((1, 1), v)) for m, v in ((0, 4), (3, 1)))
    one, other = (Gaussian(g.mean_F.double(), g.covariance_FF.double()) for g in (one, other))
    assert FrechetDistance(other)(one) == pytest.approx(9 + 1, rel=1e-6)


def test_moments_do_not_depend_on_batches_and_groups_can_be_left_out():
    x_NF = torch.randn(60, 5, dtype=torch.float64) + 3
    group_N = torch.arange(60) % 4
    whole, parts = Moments(), Moments(4)
    whole.add(x_NF)
    for x_BF, group_B in zip(x_NF.split(7), group_N.split(7), strict=True):
        parts.add(x_BF, group_B)
    for moments in (whole, parts):
        told = moments.gaussian()
        torch.testing.assert_close(told.mean_F, x_NF.mean(0))
        torch.testing.assert_close(told.covariance_FF, torch.cov(x_NF.T))
    without = parts.gaussian(without=2)
    torch.testing.assert_close(without.covariance_FF, torch.cov(x_NF[group_N != 2].T))
    assert [each.shape for each in parts.sums()] == [(4,), (4, 5), (4, 5, 5)]
    with pytest.raises(UserError, match="at least 2 pictures, not 0"):
        Moments().gaussian()
    broken = Moments()
    broken.add(torch.full((3, 2), math.nan))
    with pytest.raises(UserError, match="not finite"):
        broken.gaussian()


def test_a_set_depends_on_its_pictures_alone(monkeypatch):
    """The same for any batches and any order: ranks may share the work."""
    monkeypatch.setattr(feature_sets, "MOST_KEPT", 50)
    one = Collector(Projection(), GROUPS)
    for first in range(0, 300, 100):
        one.add(REAL[first : first + 100], torch.arange(first, first + 100))
    other, order = Collector(Projection(), GROUPS), torch.randperm(300)
    for index_B in order.split(7):
        other.add(REAL[index_B], index_B)
    one, other = one.done(), other.done()
    torch.testing.assert_close(one.kept_KF, other.kept_KF)
    torch.testing.assert_close(one.logits_KC, other.logits_KC)
    torch.testing.assert_close(one.pooled.covariance_FF, other.pooled.covariance_FF)
    for group in range(GROUPS):
        told = [each.repeats["pooled"].gaussian(without=group).mean_F for each in (one, other)]
        torch.testing.assert_close(*told)
    assert len(one.kept_KF) == 50
    assert len(set(range(300)) - set(map(int, order[:50]))) == 250


def test_the_jackknife_of_a_mean_is_its_standard_error():
    x_N = np.random.default_rng(0).normal(size=12)
    left_out = [(x_N.sum() - x) / 11 for x in x_N]
    assert jackknife_error(left_out) == pytest.approx(x_N.std(ddof=1) / math.sqrt(12), rel=1e-9)


def test_intervals_hold_the_spread_of_other_draws(both):
    """The distances of other sets of the same size lie within, nearly always."""
    measures = {measure.name: measure for measure in compare(*both)}
    told = {name for name, measure in measures.items() if measure.interval}
    assert told == {"fid", "sfid", "inception_score", "kid"}
    half = {name: np.ptp(measures[name].interval) / 2 for name in told}
    others = []
    for seed in range(10, 22):
        (made,) = collect([Projection()], pictures(400, seed, 0.8).split(200))
        others.append({measure.name: measure.value for measure in compare(made, both[1])})
    for name in told:
        spread = np.std([other[name] for other in others], ddof=1)
        assert spread < half[name] < 8 * spread, name


def test_what_can_not_be_computed_says_why(both):
    made, real = both
    told = as_row(compare(made, FeatureSet(real.facts, real.pooled)))
    assert told["fid"] > 0
    assert (told["kid"], told["sfid"], told["precision"], told["recall"]) == (None,) * 4
    assert told["not_measured"]["kid"] == "of one set only statistics are known, no pictures"
    assert "mu_s and sigma_s" in told["not_measured"]["sfid"]
    told = as_row(compare(FeatureSet(made.facts, made.pooled), real))
    assert (told["inception_score"], told["fid"] > 0) == (None, True)
    (few,) = collect([Projection()], [MADE[:3]], GROUPS)
    row = as_row(compare(few, real))
    reason = "it needs more than 3 pictures"
    assert row["not_measured"] == {"precision": reason, "recall": reason}
    assert row["intervals"] == {}
    assert row["inception_score"] == pytest.approx(1), "a picture in each split"


def test_other_networks_never_measure_an_fid(both):
    made, real = (
        collect([Pooling("resnet18")], images.split(300), GROUPS)[0] for images in (MADE, REAL)
    )
    row = as_row(compare(made, real))
    names = {f"{kind}_resnet18" for kind in ("frechet", "mmd", "precision", "recall")}
    assert set(row) == {*names, "intervals", "not_measured"}
    inception = as_row(compare(*both))
    assert row["frechet_resnet18"] == pytest.approx(inception["fid"], rel=1e-9)
    assert row["mmd_resnet18"] == pytest.approx(inception["kid"], rel=1e-6)


def test_sets_of_different_networks_are_refused(both):
    narrow = Gaussian(torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64))
    with pytest.raises(UserError, match="cannot compare 48 features with 3"):
        compare(both[0], FeatureSet(both[1].facts, narrow))
