# SPDX-License-Identifier: Apache-2.0
"""How strongly a noise level is aligned: a window, and the whole gap.

B batch, G groups, T bins.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_method import alignment, priors

from ahpa_scale.method import DynamicRouter, UniformRouter
from ahpa_scale.method.gap import MeasuredGap
from ahpa_scale.method.strength import NoiseWindow, gap_strength


@given(low=st.floats(0, 0.9), width=st.floats(0.05, 0.1))
def test_a_window_keeps_the_mean_strength_and_aligns_nothing_outside(low: float, width: float):
    t_B = (torch.arange(200_000) + 0.5) / 200_000
    strength_B = NoiseWindow(low, low + width)(t_B)
    assert strength_B.mean().item() == pytest.approx(1.0, rel=1e-3)
    assert not strength_B[(t_B < low - 1e-6) | (t_B > low + width + 1e-6)].any()


@pytest.mark.parametrize("window", [(0.5, 0.5), (0.7, 0.2), (-0.1, 0.5), (0.5, 1.1)])
def test_a_window_that_cannot_be_is_refused(window):
    with pytest.raises(ValueError, match="noise window must be"):
        NoiseWindow(*window)


def test_the_strength_of_the_gap_follows_what_is_lacking_in_all():
    gap_GT = torch.tensor([[0.1, 0.6], [0.1, 0.2]])
    torch.testing.assert_close(gap_strength(gap_GT), torch.tensor([0.4, 1.6]))
    target = MeasuredGap(gap_GT)
    torch.testing.assert_close(target.strength(torch.tensor([0.9, 0.2])), torch.tensor([1.6, 0.4]))


def gradient(t_B: torch.Tensor, **settings) -> torch.Tensor:
    module = alignment(**settings)
    h_BND = torch.randn(len(t_B), 16, 16, requires_grad=True)
    module({1: h_BND}, t_B, priors(len(t_B))).backward()
    return h_BND.grad


def test_pictures_outside_the_window_pull_at_nothing():
    t_B = torch.tensor([0.1, 0.4, 0.6, 0.9])
    everywhere_BND = gradient(t_B, router=UniformRouter(2))
    within_BND = gradient(t_B, router=UniformRouter(2), window=(0.5, 1.0))
    assert not within_BND[:2].any()
    torch.testing.assert_close(within_BND[2:], 2 * everywhere_BND[2:])


def test_the_gap_moves_the_pull_to_where_something_is_lacking():
    t_B = torch.tensor([0.1, 0.2, 0.8, 0.9])
    gap = {"objective": "gap", "gap": torch.tensor([[0.1, 0.6], [0.1, 0.2]])}
    flat_BND = gradient(t_B, router=DynamicRouter(2), **gap)
    gap_BND = gradient(t_B, router=DynamicRouter(2), **gap, gap_strength=True)
    torch.testing.assert_close(gap_BND[:2], 0.4 * flat_BND[:2])
    torch.testing.assert_close(gap_BND[2:], 1.6 * flat_BND[2:])
