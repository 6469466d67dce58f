# SPDX-License-Identifier: Apache-2.0
"""From a picture's posterior to a noised input: the one place where training, held-out losses and
readouts draw latents, noise and noise level.

Shapes: B batch, C latent channels, H W latent sides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ahpa_scale.models.flow import Path, interpolate
from ahpa_scale.models.randomness import normal, uniform
from ahpa_scale.models.vae_config import LatentScaling

Key = Callable[[str], Tensor]


@dataclass(frozen=True)
class Noised:
    """A batch on its way between data (t = 0) and noise (t = 1), float32.

    Attributes:
        x_BCHW: the clean latents, sampled and scaled.
        eps_BCHW: the noise.
        t_B: the noise levels in [0, 1].
        xt_BCHW: what the backbone sees.
        target_BCHW: the velocity that it is to predict.
    """

    x_BCHW: Tensor
    eps_BCHW: Tensor
    t_B: Tensor
    xt_BCHW: Tensor
    target_BCHW: Tensor


def noised(
    mean_BCHW: Tensor,
    std_BCHW: Tensor,
    scaling: LatentScaling,
    path: Path,
    key: Key,
    timesteps: Callable[[Tensor], Tensor],
) -> Noised:
    """Samples the posterior, draws noise and noise level, and mixes them.

    Args:
        mean_BCHW: posterior mean, unscaled float32.
        std_BCHW: posterior deviation.
        scaling: scaling of the latents.
        path: the interpolant between data and noise.
        key: gives the key of each picture's random numbers for the streams ``posterior``,
            ``noise`` and ``timestep``.
        timesteps: turns uniform numbers ``[B]`` into noise levels.
    """
    shape = tuple(mean_BCHW.shape[1:])
    x_BCHW = scaling.normalise(mean_BCHW + std_BCHW * normal(key("posterior"), shape))
    eps_BCHW = normal(key("noise"), shape)
    t_B = timesteps(uniform(key("timestep"))[:, 0])
    xt_BCHW, target_BCHW = interpolate(path, x_BCHW, eps_BCHW, t_B)
    return Noised(x_BCHW, eps_BCHW, t_B, xt_BCHW, target_BCHW)
