# SPDX-License-Identifier: Apache-2.0
"""Integrators from noise (t = 1) to data (t = 0): Euler, Heun and the stochastic Euler-Maruyama.

Noise is keyed by seed and sample index, so a sample depends neither on the batch size nor on ranks.
Shape legend: B batch, C channels, H W.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from ahpa_scale.errors import UserError
from ahpa_scale.models.flow import Path
from ahpa_scale.models.randomness import normal, sample_key

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]
_Field = Callable[[Tensor, float], Tensor]

_METHODS = ("euler", "heun", "sde")


@torch.no_grad()
def sample(
    model: Velocity,
    *,
    labels_B: Tensor,
    index_B: Tensor,
    seed: int,
    shape: tuple[int, int, int],
    path: Path,
    steps: int,
    method: str = "euler",
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    last_step: float = 0.04,
) -> Tensor:
    """Draw samples.

    Args:
        model: a backbone or any ``velocity(x_BCHW, t_B, condition_B)``. Guidance needs
            ``model.null_label``.
        labels_B: int64 [B] classes; sampling runs on their device.
        index_B: int64 [B] identity of each sample: same seed and index, same noise.
        seed: any integer.
        shape: [C, H, W] of one sample.
        path: the interpolant that the model was trained on.
        steps: integration steps. Cost in model calls: ``steps``; Heun 2 * steps - 1.
        method: ``euler`` or ``heun`` for the probability-flow ODE, ``sde`` for Euler-Maruyama.
        guidance_scale: v_null + scale * (v_class - v_null) on all channels (Ho and Salimans 2022,
            arXiv 2207.12598, equation 6); 1 is the plain model at half the cost.
        guidance_interval: guide only at times within it, both ends included (Kynkaanniemi et al.
            2024, arXiv 2404.07724); elsewhere the plain model is used.
        last_step: ``sde`` only: length of the final, noise-free step. 0.04 as in SiT and REPA. A
            single step is the final one and goes from 1 to 0.

    Returns:
        float32 [B, C, H, W], in the scaled latent space the model was trained in.

    Raises:
        UserError: unknown method, or numbers out of range, or guidance without a null label.
    """
    _check(labels_B, index_B, steps, method, guidance_interval, last_step)
    index_B = index_B.to(labels_B.device)
    field = _guided(model, labels_B, guidance_scale, guidance_interval)
    x_BCHW = normal(sample_key(seed, 0, index_B, "sampling.start"), shape)
    if method == "sde":
        return _integrate_sde(field, x_BCHW, path, _sde_times(steps, last_step), seed, index_B)
    return _integrate_ode(field, x_BCHW, steps, heun=method == "heun")


def _check(
    labels_B: Tensor,
    index_B: Tensor,
    steps: int,
    method: str,
    interval: tuple[float, float],
    last_step: float,
) -> None:
    if method not in _METHODS:
        nearest = difflib.get_close_matches(method, _METHODS, n=1, cutoff=0.0)[0]
        raise UserError(
            f"unknown sampler {method!r}: did you mean {nearest!r}? Valid: {', '.join(_METHODS)}"
        )
    if steps < 1:
        raise UserError(f"steps must be at least 1, got {steps}")
    if labels_B.ndim != 1 or labels_B.shape != index_B.shape:
        raise UserError(
            "labels and indices must be two lists of one length,"
            f" got shapes {list(labels_B.shape)} and {list(index_B.shape)}"
        )
    if not 0 <= interval[0] <= interval[1] <= 1:
        raise UserError(f"guidance_interval must be 0 <= low <= high <= 1, got {interval}")
    if not 0 < last_step < 1:
        raise UserError(f"last_step must be between 0 and 1, got {last_step}")


def _guided(
    model: Velocity, labels_B: Tensor, scale: float, interval: tuple[float, float]
) -> _Field:
    """The velocity as a function of x and a host-side time, with classifier-free guidance."""
    null_label = getattr(model, "null_label", None)
    if scale == 1.0:
        return lambda x_BCHW, time: model(x_BCHW, _full_time(x_BCHW, time), labels_B).float()
    if null_label is None:
        raise UserError(
            f"guidance_scale {scale} needs a model with a null class (class_dropout_prob > 0);"
            " use guidance_scale 1.0"
        )
    condition_2B = torch.cat([labels_B, torch.full_like(labels_B, null_label)])
    low, high = interval

    def field(x_BCHW: Tensor, time: float) -> Tensor:
        t_B = _full_time(x_BCHW, time)
        if not low <= time <= high:
            return model(x_BCHW, t_B, labels_B).float()
        both = model(torch.cat([x_BCHW, x_BCHW]), torch.cat([t_B, t_B]), condition_2B).float()
        v_class, v_null = both.chunk(2)
        return v_null + scale * (v_class - v_null)

    return field


def _full_time(x_BCHW: Tensor, time: float) -> Tensor:
    return torch.full((x_BCHW.shape[0],), time, device=x_BCHW.device)


def _integrate_ode(field: _Field, x_BCHW: Tensor, steps: int, heun: bool) -> Tensor:
    """Uniform steps of dx/dt = v from 1 to 0."""
    times = [1.0 - step / steps for step in range(steps)] + [0.0]
    for now, then in itertools.pairwise(times):
        v = field(x_BCHW, now)
        # No second evaluation at t = 0: the network was trained on t > 0 only.
        if heun and then > 0:
            v = 0.5 * (v + field(x_BCHW + (then - now) * v, then))
        x_BCHW = x_BCHW + (then - now) * v
    return x_BCHW


def _sde_times(steps: int, last_step: float) -> list[float]:
    stride = (1.0 - last_step) / max(steps - 1, 1)
    return [1.0 - stride * step for step in range(steps)] + [0.0]


def _integrate_sde(
    field: _Field, x_BCHW: Tensor, path: Path, times: list[float], seed: int, index_B: Tensor
) -> Tensor:
    """Euler-Maruyama on dx = (v - w s / 2) dt + sqrt(w) dW backwards in time; w = 2 sigma.

    The SDE and the score from the velocity are those of SiT, section 2 ("reverse-time SDE"); the
    diffusion is the ``sigma`` form of its released sampler. The SDE keeps the path's marginals for
    any w(t) >= 0; w = 2 sigma cancels the score's 1 / sigma.
    """
    shape = tuple(x_BCHW.shape[1:])
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
            kick = normal(sample_key(seed, step, index_B, "sampling.step"), shape)
            x_BCHW = x_BCHW + (2.0 * sigma * (now - then)) ** 0.5 * kick
    return x_BCHW
