# SPDX-License-Identifier: Apache-2.0
"""Interpolants between data (t = 0) and noise (t = 1), their velocities, SNR and time sampling.

x_t = alpha(t) x + sigma(t) eps, v = alpha'(t) x + sigma'(t) eps (SiT, arXiv 2401.08740, section 2).
Shape legend: B batch, C channels, H W.
"""

from __future__ import annotations

import difflib
import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ahpa_scale.errors import UserError


class Path(ABC):
    """Coefficients of an interpolant and their time derivatives, elementwise on t in [0, 1]."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Coefficient of the data: 1 at t = 0, 0 at t = 1."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Coefficient of the noise: 0 at t = 0, 1 at t = 1."""

    @abstractmethod
    def d_alpha(self, t: Tensor) -> Tensor:
        """Time derivative of ``alpha``."""

    @abstractmethod
    def d_sigma(self, t: Tensor) -> Tensor:
        """Time derivative of ``sigma``."""


class LinearPath(Path):
    """alpha = 1 - t, sigma = t: straight lines, v = eps - x."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1.0 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def d_alpha(self, t: Tensor) -> Tensor:
        return torch.full_like(t, -1.0)

    def d_sigma(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


class GVPPath(Path):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2): the variance-preserving path of SiT."""

    def alpha(self, t: Tensor) -> Tensor:
        # As a sine it is exactly 0 at t = 1; the rounded cosine is negative there.
        return torch.sin((1.0 - t) * (math.pi / 2))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(t * (math.pi / 2))

    def d_alpha(self, t: Tensor) -> Tensor:
        return torch.sin(t * (math.pi / 2)) * (-math.pi / 2)

    def d_sigma(self, t: Tensor) -> Tensor:
        return torch.sin((1.0 - t) * (math.pi / 2)) * (math.pi / 2)


class VPPath(Path):
    """The noise schedule that the official DiT was trained on, made continuous; for sampling only.

    DDPM's linear schedule (Ho et al. 2020, arXiv 2006.11239, section 4): beta_k from 1e-4 to 0.02
    in 1,000 steps, abar_n the product of the first n factors 1 - beta_k, and x_n = sqrt(abar_n) x +
    sqrt(1 - abar_n) eps. The n-th step lies at t = n / 1000, as in DPM-Solver (Lu et al. 2022,
    arXiv 2206.00927). A product of equally spaced factors is a quotient of gamma functions, which
    is smooth in n: with 1 - beta_k = d (q - k), abar_n = d^n Gamma(q + 1) / Gamma(q - n + 1).

    Below the first step, where sqrt(1 - abar) would be infinitely steep, sigma is linear. At t = 1
    alpha is 0.0064 instead of 0, as in DDPM. Values have the dtype of `t`; they are computed in
    float64, because the gamma functions nearly cancel.
    """

    STEPS = 1000
    _FIRST, _LAST = 1e-4, 0.02
    _SPACING = (_LAST - _FIRST) / (STEPS - 1)
    _Q = (1.0 - _FIRST) / _SPACING
    #: Slope of sigma below the first step.
    _EARLY = math.sqrt(_FIRST) * STEPS

    def alpha(self, t: Tensor) -> Tensor:
        early = torch.sqrt(1.0 - self._early_sigma(t.double()).square())
        return torch.where(self._is_early(t), early, torch.exp(0.5 * self._log_abar(t))).to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        later = torch.sqrt(-torch.expm1(self._log_abar(t)))
        return torch.where(self._is_early(t), self._early_sigma(t.double()), later).to(t.dtype)

    def d_alpha(self, t: Tensor) -> Tensor:
        wide = t.double()
        alpha = self.alpha(wide)
        early = -self.sigma(wide) * self._EARLY / alpha
        return torch.where(self._is_early(t), early, alpha * self._d_log_alpha(t)).to(t.dtype)

    def d_sigma(self, t: Tensor) -> Tensor:
        # From alpha^2 + sigma^2 = 1.
        wide = t.double().clamp(min=1.0 / self.STEPS)
        later = -self.alpha(wide).square() * self._d_log_alpha(wide) / self.sigma(wide)
        return torch.where(self._is_early(t), self._EARLY, later).to(t.dtype)

    def _is_early(self, t: Tensor) -> Tensor:
        return t < 1.0 / self.STEPS

    def _early_sigma(self, t: Tensor) -> Tensor:
        return t.clamp(max=1.0 / self.STEPS) * self._EARLY

    def _log_abar(self, t: Tensor) -> Tensor:
        n = t.double() * self.STEPS
        gammas = math.lgamma(self._Q + 1.0) - torch.lgamma(self._Q + 1.0 - n)
        return n * math.log(self._SPACING) + gammas

    def _d_log_alpha(self, t: Tensor) -> Tensor:
        n = t.double() * self.STEPS
        slope = math.log(self._SPACING) + torch.digamma(self._Q + 1.0 - n)
        return 0.5 * self.STEPS * slope


_PATHS: dict[str, type[Path]] = {"linear": LinearPath, "gvp": GVPPath, "vp": VPPath}


def get_path(name: str) -> Path:
    """The interpolant called ``linear`` or ``gvp``, or, for sampling only, ``vp``.

    Raises:
        UserError: an unknown name.
    """
    if name not in _PATHS:
        raise UserError(_unknown("path", name, list(_PATHS)))
    return _PATHS[name]()


def interpolate(path: Path, x_BCHW: Tensor, eps_BCHW: Tensor, t_B: Tensor) -> tuple[Tensor, Tensor]:
    """Noisy sample and velocity target.

    Args:
        path: the interpolant.
        x_BCHW: clean data.
        eps_BCHW: standard normal noise.
        t_B: float32 times in [0, 1].

    Returns:
        ``x_t`` and the velocity ``dx_t / dt``, both [B, C, H, W].
    """
    t_B111 = t_B.reshape(-1, *([1] * (x_BCHW.ndim - 1)))
    x_t = path.alpha(t_B111) * x_BCHW + path.sigma(t_B111) * eps_BCHW
    v_target = path.d_alpha(t_B111) * x_BCHW + path.d_sigma(t_B111) * eps_BCHW
    return x_t, v_target


def velocity_loss(v_pred: Tensor, v_target: Tensor) -> Tensor:
    """Mean squared velocity error of each sample, float32 [B] whatever the inputs' dtype."""
    return (v_pred.float() - v_target.float()).square().flatten(1).mean(dim=1)


def log_snr(path: Path, t: Tensor) -> Tensor:
    """ln(alpha^2 / sigma^2): falls from +inf at t = 0 to -inf at t = 1."""
    return 2.0 * (torch.log(path.alpha(t)) - torch.log(path.sigma(t)))


_TIME_KINDS = ("uniform", "logit_normal")


def sample_timesteps(
    u_B: Tensor, kind: str = "uniform", mean: float = 0.0, std: float = 1.0
) -> Tensor:
    """Map uniform numbers to training times.

    Args:
        u_B: float32 in (0, 1), for example from ``randomness.uniform``.
        kind: ``uniform``, or ``logit_normal`` (Esser et al. 2024, arXiv 2403.03206, section 3.1).
        mean: mean of logit(t); above 0 leans towards noise. Logit-normal only.
        std: standard deviation of logit(t). Logit-normal only.

    Returns:
        Times in (0, 1), same shape and dtype as ``u_B``.

    Raises:
        UserError: an unknown kind, or ``std`` not above 0.
    """
    if kind not in _TIME_KINDS:
        raise UserError(_unknown("time distribution", kind, list(_TIME_KINDS)))
    if kind == "uniform":
        return u_B
    if std <= 0:
        raise UserError(f"logit_normal: std must be above 0, got {std}")
    return torch.sigmoid(torch.special.ndtri(u_B) * std + mean)


def _unknown(what: str, name: str, valid: list[str]) -> str:
    nearest = difflib.get_close_matches(name, valid, n=1, cutoff=0.0)[0]
    return f"unknown {what} {name!r}: did you mean {nearest!r}? Valid: {', '.join(valid)}"
