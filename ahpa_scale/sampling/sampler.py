# SPDX-License-Identifier: Apache-2.0
"""Integrators from noise (t = 1) to data (t = 0).

Noise is keyed by seed and sample index, so a sample depends neither on the batch size nor on ranks.
Shape legend: B batch, C channels, H W.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from ahpa_scale.errors import UserError
from ahpa_scale.models.flow import Path
from ahpa_scale.models.randomness import normal, sample_key
from ahpa_scale.sampling.adaptive import solve_batch, solve_each
from ahpa_scale.sampling.guidance import Field, Velocity, velocity_field
from ahpa_scale.sampling.settings import SamplerSettings


@torch.no_grad()
def sample(
    model: Velocity,
    *,
    labels_B: Tensor,
    index_B: Tensor,
    shape: tuple[int, int, int],
    path: Path,
    settings: SamplerSettings,
    guide: Velocity | None = None,
) -> Tensor:
    """Draw samples.

    Args:
        model: a backbone or any ``velocity(x_BCHW, t_B, condition_B)``. Guidance without a `guide`
            needs ``model.null_label``.
        labels_B: int64 [B] classes; sampling runs on their device.
        index_B: int64 [B] identity of each sample: same seed and index, same noise.
        shape: [C, H, W] of one sample.
        path: the interpolant that the model was trained on.
        settings: method, steps, guidance and seed.
        guide: the model of ``settings.guide``.

    Returns:
        float32 [B, C, H, W], in the scaled latent space the model was trained in.

    Raises:
        UserError: labels and indices don't match, or guidance without a null label.
    """
    if labels_B.ndim != 1 or labels_B.shape != index_B.shape:
        raise UserError(
            "labels and indices must be two lists of one length,"
            f" got shapes {list(labels_B.shape)} and {list(index_B.shape)}"
        )
    index_B = index_B.to(labels_B.device)
    field = velocity_field(model, labels_B, settings, guide)
    x_BCHW = normal(sample_key(settings.seed, 0, index_B, "sampling.start"), shape)
    if settings.method == "dopri5":
        return solve_each(field, x_BCHW)
    if settings.method == "dopri5_batch":
        return solve_batch(field, x_BCHW)
    if settings.method == "sde":
        return _integrate_sde(field, x_BCHW, path, settings, index_B)
    return _integrate_ode(field, x_BCHW, settings)


def _integrate_ode(field: Field, x_BCHW: Tensor, settings: SamplerSettings) -> Tensor:
    """Steps of dx/dt = v from 1 to 0, equal ones but for the shift."""
    steps, k = settings.steps, settings.time_shift
    equal = [1.0 - step / steps for step in range(steps)] + [0.0]
    times = [k * t / (1.0 + (k - 1.0) * t) for t in equal]
    for now, then in itertools.pairwise(times):
        v = field(x_BCHW, now)
        # No second evaluation at t = 0: the network was trained on t > 0 only.
        if settings.method == "heun" and then > 0:
            v = 0.5 * (v + field(x_BCHW + (then - now) * v, then))
        x_BCHW = x_BCHW + (then - now) * v
    return x_BCHW


def _sde_times(steps: int, last_step: float) -> list[float]:
    stride = (1.0 - last_step) / max(steps - 1, 1)
    return [1.0 - stride * step for step in range(steps)] + [0.0]


def _integrate_sde(
    field: Field, x_BCHW: Tensor, path: Path, settings: SamplerSettings, index_B: Tensor
) -> Tensor:
    """Euler-Maruyama on dx = (v - w s / 2) dt + sqrt(w) dW backwards in time; w = 2 sigma.

    The SDE and the score from the velocity are those of SiT, section 2 ("reverse-time SDE"); the
    diffusion is the ``sigma`` form of its released sampler. The SDE keeps the path's marginals for
    any w(t) >= 0; w = 2 sigma cancels the score's 1 / sigma.
    """
    shape = tuple(x_BCHW.shape[1:])
    times = _sde_times(settings.steps, settings.last_step)
    for step, (now, then) in enumerate(itertools.pairwise(times)):
        t = torch.tensor(now, dtype=torch.float64)
        alpha, sigma = path.alpha(t).item(), path.sigma(t).item()
        d_alpha, d_sigma = path.d_alpha(t).item(), path.d_sigma(t).item()
        v = field(x_BCHW, now)
        # Two equations, x = alpha x0 + sigma e and v = alpha' x0 + sigma' e, solved for e.
        noise = (alpha * v - d_alpha * x_BCHW) / (alpha * d_sigma - d_alpha * sigma)
        # With the score -e / sigma and w = 2 sigma, the term -w s / 2 is just e.
        x_BCHW = x_BCHW + (then - now) * (v + noise)
        if then > 0:
            kick = normal(sample_key(settings.seed, step, index_B, "sampling.step"), shape)
            x_BCHW = x_BCHW + (2.0 * sigma * (now - then)) ** 0.5 * kick
    return x_BCHW
