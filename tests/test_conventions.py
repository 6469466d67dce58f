# SPDX-License-Identifier: Apache-2.0
"""The official DiT's noise schedule as a path, and its network read as a velocity.

Legend: B batch, C channels, H W.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ahpa_scale.config.errors import ConfigError
from ahpa_scale.models import as_velocity, get_path
from ahpa_scale.models.dit import build_dit


def test_the_vp_path_is_the_official_schedule_at_each_of_its_steps():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    abar = torch.cumprod(1 - betas, 0)
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    path = get_path("vp")
    torch.testing.assert_close(path.alpha(t), abar.sqrt(), rtol=1e-9, atol=0)
    torch.testing.assert_close(path.sigma(t), (1 - abar).sqrt(), rtol=1e-7, atol=0)
    # As published: the last step of DDPM's linear schedule keeps 4e-5 of the data's variance.
    assert path.alpha(t[-1:]).item() ** 2 == pytest.approx(4.036e-5, rel=1e-3)


def test_the_vp_path_keeps_the_variance_and_begins_at_the_data():
    path, t = get_path("vp"), torch.linspace(0, 1, 2049, dtype=torch.float64)
    torch.testing.assert_close(path.alpha(t) ** 2 + path.sigma(t) ** 2, torch.ones_like(t))
    assert path.alpha(t)[0] == 1
    assert path.sigma(t)[0] == 0
    assert (path.alpha(t).diff() < 0).all()
    assert (path.sigma(t).diff() > 0).all()
    for value in (path.d_alpha(t), path.d_sigma(t)):
        assert value.isfinite().all()


@pytest.mark.parametrize("t", [0.0004, 0.0314159, 0.5, 0.9995])
def test_the_vp_derivatives_are_those_of_its_values(t):
    path, time, h = get_path("vp"), torch.tensor([t], dtype=torch.float64), 1e-5
    for value, derivative in ((path.alpha, path.d_alpha), (path.sigma, path.d_sigma)):
        expected = (value(time + h) - value(time - h)) / (2 * h)
        torch.testing.assert_close(derivative(time), expected, rtol=1e-5, atol=1e-5)


class ExactNoise(nn.Module):
    """The ideal DiT for data of one single picture, 2 everywhere: it knows the noise exactly."""

    in_channels, input_size, num_classes, null_label = 1, 2, 1, None

    def forward(self, x_BCHW, step_B, y_B):
        abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
        step = step_B.round().long()
        assert torch.allclose(step_B.double(), step.double(), atol=1e-3), "asked at whole steps"
        a = abar[step].reshape(-1, 1, 1, 1)
        return ((x_BCHW - a.sqrt() * 2) / (1 - a).sqrt()).float()


def test_noise_that_is_predicted_becomes_the_velocity_of_the_path():
    path = get_path("vp")
    t_B = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.01])
    eps = torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    t = t_B.double().reshape(-1, 1, 1, 1)
    x_BCHW = (path.alpha(t) * 2 + path.sigma(t) * eps).float()
    expected = (path.d_alpha(t) * 2 + path.d_sigma(t) * eps).float()
    velocity = as_velocity(ExactNoise(), "dit-eps")
    found = velocity(x_BCHW, t_B, torch.zeros(5, dtype=torch.long))
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-4)


def test_a_velocity_of_our_own_is_the_network_itself():
    dit = build_dit("tiny/2", input_size=8, depth=1, num_classes=3)
    assert as_velocity(dit, "velocity") is dit
    wrapped = as_velocity(dit, "sit")
    assert (wrapped.in_channels, wrapped.input_size, wrapped.num_classes) == (4, 8, 3)
    assert wrapped.null_label == 3
    assert math.prod(wrapped.model.pos_embed.shape) == 16 * 192


def test_a_run_does_not_train_on_the_path_for_sampling(load):
    with pytest.raises(ConfigError, match=r"flow\.path"):
        load("flow.path=vp")
