# SPDX-License-Identifier: Apache-2.0
"""Distances between distributions of numbers, and the texture of pictures as such numbers.

Shapes: N pictures, S the picture's side, P patches, Q quantiles, M measures.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ahpa_scale.errors import UserError

QUANTILES = 256
_PATCH, _STRIDE = 8, 4
# Energies are on a scale of 0 to 1 per pixel; below this, differences are rounding to 8 bits.
_FLOOR = 1e-5
_BANDS = ((0.5, 1.5), (1.5, 2.5), (2.5, 3.5), (3.5, 6.0))


def quantiles(values_P: Tensor) -> Tensor:
    """256 evenly spaced quantiles (bin centres) of any number of values, float64 [Q].

    Raises:
        UserError: no value.
    """
    if not len(values_P):
        raise UserError("there are no values to take quantiles of")
    sorted_P = values_P.double().sort().values
    # Computed here, because torch.quantile refuses more than 16 million values.
    place_Q = (torch.arange(QUANTILES) + 0.5) / QUANTILES * len(sorted_P) - 0.5
    place_Q = place_Q.clamp(0, len(sorted_P) - 1)
    low_Q = place_Q.floor().long()
    high_Q = (low_Q + 1).clamp(max=len(sorted_P) - 1)
    return torch.lerp(sorted_P[low_Q], sorted_P[high_Q], (place_Q - low_Q).double())


def wasserstein(a_Q: Tensor, b_Q: Tensor) -> float:
    """1-Wasserstein distance of two distributions given by `quantiles`, in their unit."""
    return float((a_Q - b_Q).abs().mean())


def texture_quantiles(images_N3SS: Tensor, batch_size: int = 256) -> Tensor:
    """Distributions of local texture over all 8x8 patches (every 4 pixels) of many pictures.

    Seven measures per patch, each a natural logarithm: the gradient energy of each channel, and
    the energy of the patch's windowed grey spectrum in four bands of frequency.

    Args:
        images_N3SS: uint8, sides of at least 8.
        batch_size: pictures at a time.

    Returns:
        float64 [7, Q].

    Raises:
        UserError: no picture.
    """
    parts = [_texture(part) for part in images_N3SS.split(batch_size)] if len(images_N3SS) else []
    if not parts:
        raise UserError("there are no pictures to measure")
    return torch.stack([quantiles(values_P) for values_P in torch.cat(parts).T])


def _texture(images_N3SS: Tensor) -> Tensor:
    """Measures of every patch, float32 [P, 7]."""
    x_N3SS = images_N3SS.float() / 255.0
    # Both gradients at the same points, so that a patch has one energy.
    right = x_N3SS[..., :-1, 1:] - x_N3SS[..., :-1, :-1]
    down = x_N3SS[..., 1:, :-1] - x_N3SS[..., :-1, :-1]
    energy = F.pad(right.square() + down.square(), (0, 1, 0, 1), mode="replicate")
    gradient_N3hw = F.avg_pool2d(energy, _PATCH, _STRIDE)
    spectrum_N4hw = _spectrum(x_N3SS.mean(dim=1))
    measures_N7hw = torch.cat([gradient_N3hw, spectrum_N4hw], dim=1)
    return (measures_N7hw + _FLOOR).log().permute(0, 2, 3, 1).flatten(0, 2)


def _spectrum(grey_NSS: Tensor) -> Tensor:
    """Spectral energy of each patch in each band, [N, 4, h, w]."""
    patch_Nhwpp = grey_NSS.unfold(1, _PATCH, _STRIDE).unfold(2, _PATCH, _STRIDE)
    window_p = torch.hann_window(_PATCH + 2, periodic=False)[1:-1]
    window_pp = window_p[:, None] * window_p
    patch_Nhwpp = (patch_Nhwpp - patch_Nhwpp.mean(dim=(-2, -1), keepdim=True)) * window_pp
    power = torch.fft.fft2(patch_Nhwpp, norm="ortho").abs().square()
    frequency_p = torch.fft.fftfreq(_PATCH) * _PATCH
    radius_pp = torch.hypot(frequency_p[:, None], frequency_p)
    bands = [(radius_pp >= low) & (radius_pp < high) for low, high in _BANDS]
    return torch.stack([(power * band).sum(dim=(-2, -1)) for band in bands], dim=1)
