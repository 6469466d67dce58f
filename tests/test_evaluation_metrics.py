# SPDX-License-Identifier: Apache-2.0
"""Frechet and kernel distances against closed forms and independent computations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.judges import FeatureStatistics, class_accuracy, frechet_distance, kernel_distance


def rows(count: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) @ mix


def gaussian(mean: list[float], variances: list[float]) -> FeatureStatistics:
    covariance = torch.diag(torch.tensor(variances, dtype=torch.float64))
    return FeatureStatistics(torch.tensor(mean, dtype=torch.float64), covariance, 100)


def test_frechet_distance_of_axis_parallel_gaussians_is_the_closed_form():
    a, b = gaussian([0.0, 1.0, 2.0], [1.0, 4.0, 0.0]), gaussian([3.0, 1.0, 0.0], [9.0, 1.0, 0.25])
    # |0-3|^2 + |2-0|^2, then (1-3)^2 + (2-1)^2 + (0-0.5)^2 of the deviations.
    assert frechet_distance(a, b) == pytest.approx(9 + 4 + 4 + 1 + 0.25, rel=1e-12)


@given(
    width=st.integers(1, 12),
    counts=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=40)
def test_frechet_distance_agrees_with_the_eigenvalues_of_the_product(width, counts, seed):
    """Few rows give singular covariances, where complex square roots are known to fail."""
    a = FeatureStatistics.of(rows(counts[0], width, seed))
    b = FeatureStatistics.of(rows(counts[1], width, seed + 1) + 0.3)
    values = torch.linalg.eigvals(a.covariance_FF @ b.covariance_FF).real.clamp(min=0)
    spread = a.covariance_FF.trace() + b.covariance_FF.trace()
    expected = (a.mean_F - b.mean_F).square().sum() + spread - 2 * values.sqrt().sum()
    scale = float(spread) + 1.0
    assert frechet_distance(a, b) == pytest.approx(float(expected), abs=2e-6 * scale)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), abs=1e-9 * scale)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9 * scale)


def test_statistics_are_the_sample_mean_and_the_unbiased_covariance():
    x = rows(50, 5, 0)
    statistics = FeatureStatistics.of(x.float())
    assert statistics.mean_F.dtype == torch.float64
    assert torch.allclose(statistics.mean_F, x.mean(0), atol=1e-5)
    assert torch.allclose(statistics.covariance_FF, torch.cov(x.T), atol=1e-4)
    assert statistics.count == 50


def literal_kernel_distance(x: torch.Tensor, y: torch.Tensor) -> float:
    """Equation by equation, pair by pair."""

    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        return (float(a @ b) / len(a) + 1.0) ** 3

    n = len(x)
    within = sum(kernel(z[i], z[j]) for z in (x, y) for i in range(n) for j in range(n) if i != j)
    between = sum(kernel(a, b) for a in x for b in y)
    return within / (n * (n - 1)) - 2.0 * between / (n * n)


def test_kernel_distance_is_the_unbiased_estimate():
    x, y = rows(12, 4, 1), rows(12, 4, 2) + 0.5
    assert kernel_distance(x, y) == pytest.approx(literal_kernel_distance(x, y), rel=1e-9)


def test_kernel_distance_does_not_depend_on_the_number_of_blocks_on_average():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 8, generator=generator)
    same = torch.randn(2000, 8, generator=generator)
    shifted = same + 0.3
    whole, blocks = (kernel_distance(x, shifted, block=size) for size in (2000, 200))
    assert blocks == pytest.approx(whole, rel=0.15)
    for size in (2000, 200):
        assert abs(kernel_distance(x, same, block=size)) < 0.05 * whole


def test_kernel_distance_repeats_and_ignores_what_goes_beyond_the_smaller_set():
    x, y = rows(300, 6, 3), rows(500, 6, 4)
    first = kernel_distance(x, y, block=100)
    assert kernel_distance(x, y, block=100) == first
    assert torch.isfinite(torch.tensor(first))


def test_class_accuracy_counts_the_likeliest_class():
    logits = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    assert class_accuracy(logits, torch.tensor([1, 0, 0, 0])) == 0.75


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FeatureStatistics.of(torch.zeros(1, 3)), "at least 2 rows"),
        (lambda: FeatureStatistics.of(torch.full((4, 3), torch.nan)), "not finite"),
        (lambda: frechet_distance(gaussian([0], [1]), gaussian([0, 0], [1, 1])), "one judge"),
        (lambda: kernel_distance(torch.zeros(4, 3), torch.zeros(4, 2)), "one judge"),
        (lambda: kernel_distance(torch.zeros(4, 3), torch.zeros(4, 3), block=1), "block"),
        (lambda: class_accuracy(torch.zeros(4, 2), torch.zeros(3)), "4 labels"),
    ],
)
def test_wrong_input_is_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message):
        call()
