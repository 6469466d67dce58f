# SPDX-License-Identifier: Apache-2.0
"""Interpolants: endpoints, derivatives, velocities, SNR; the distribution of training times."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ahpa_scale.models.flow import (
    get_path,
    interpolate,
    log_snr,
    sample_timesteps,
    velocity_loss,
)

PATHS = ["linear", "gvp"]


@pytest.mark.parametrize("name", PATHS)
def test_endpoints_are_data_and_noise(name):
    x, eps = torch.full((2, 1, 2, 2), 3.0), torch.full((2, 1, 2, 2), -5.0)
    x_t, _ = interpolate(get_path(name), x, eps, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(x_t[0], x[0])
    torch.testing.assert_close(x_t[1], eps[1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", PATHS)
@given(t=st.floats(0, 1))
def test_derivatives_match_autograd(name, t):
    path = get_path(name)
    for value, slope in ((path.alpha, path.d_alpha), (path.sigma, path.d_sigma)):
        at = torch.tensor(t, dtype=torch.float64, requires_grad=True)
        (expected,) = torch.autograd.grad(value(at), at)
        torch.testing.assert_close(slope(at.detach()), expected)


@pytest.mark.parametrize("name", PATHS)
def test_velocity_is_the_time_derivative_of_the_sample(name):
    path, torch_rng = get_path(name), torch.Generator().manual_seed(0)
    x, eps = torch.randn(2, 4, 3, 5, 5, dtype=torch.float64, generator=torch_rng)
    t_B = torch.tensor([0.1, 0.4, 0.6, 0.95], dtype=torch.float64)
    step = 1e-5
    after, _ = interpolate(path, x, eps, t_B + step)
    before, _ = interpolate(path, x, eps, t_B - step)
    _, v = interpolate(path, x, eps, t_B)
    torch.testing.assert_close(v, (after - before) / (2 * step), atol=1e-7, rtol=1e-6)


def test_linear_velocity_is_noise_minus_data():
    x, eps = torch.tensor([[[[2.0]]]]), torch.tensor([[[[7.0]]]])
    x_t, v = interpolate(get_path("linear"), x, eps, torch.tensor([0.25]))
    assert (x_t.item(), v.item()) == (0.75 * 2 + 0.25 * 7, 5.0)


def test_gvp_keeps_the_variance():
    path, t = get_path("gvp"), torch.linspace(0, 1, 11)
    torch.testing.assert_close(path.alpha(t) ** 2 + path.sigma(t) ** 2, torch.ones(11))


@pytest.mark.parametrize("name", PATHS)
def test_log_snr_falls_from_plus_to_minus_infinity(name):
    path = get_path(name)
    inside = log_snr(path, torch.linspace(0.01, 0.99, 99, dtype=torch.float64))
    assert (inside.diff() < 0).all()
    assert log_snr(path, torch.tensor(0.0)) == math.inf
    assert log_snr(path, torch.tensor(1.0)) == -math.inf
    assert log_snr(path, torch.tensor(0.5)).abs() < 1e-6


def test_velocity_loss_is_a_float32_mean_per_sample():
    pred = torch.zeros(2, 3, 4, 4, dtype=torch.bfloat16)
    target = torch.stack([torch.ones(3, 4, 4), torch.full((3, 4, 4), 3.0)])
    loss_B = velocity_loss(pred, target)
    assert loss_B.dtype == torch.float32
    assert loss_B.tolist() == [1.0, 9.0]


def test_logit_normal_has_the_asked_logits():
    u_B = (torch.arange(20_000) + 0.5) / 20_000
    t_B = sample_timesteps(u_B, "logit_normal", mean=-0.4, std=1.7)
    logits = torch.logit(t_B.double())
    assert 0 < t_B.min() < t_B.max() < 1
    assert logits.mean().item() == pytest.approx(-0.4, abs=2e-3)
    assert logits.std().item() == pytest.approx(1.7, abs=5e-3)
    # The median of a monotone map of a uniform is the map of one half.
    assert t_B.median().item() == pytest.approx(1 / (1 + math.exp(0.4)), abs=1e-4)


def test_uniform_times_are_the_uniforms():
    u_B = torch.tensor([0.1, 0.9])
    assert torch.equal(sample_timesteps(u_B), u_B)


def test_users_mistakes_name_the_nearest_right_thing():
    with pytest.raises(ValueError, match="did you mean 'linear'"):
        get_path("linaer")
    with pytest.raises(ValueError, match="did you mean 'logit_normal'"):
        sample_timesteps(torch.tensor([0.5]), "logitnormal")
    with pytest.raises(ValueError, match="std must be above 0"):
        sample_timesteps(torch.tensor([0.5]), "logit_normal", std=0.0)
