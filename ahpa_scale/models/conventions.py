# SPDX-License-Identifier: Apache-2.0
"""Reads networks that were trained elsewhere as velocities in this package's time.

Here t = 0 is data and t = 1 is noise, and the network predicts v = dx/dt (see `models.flow`).
Shape legend: B batch, C channels, H W.
"""

from __future__ import annotations

from torch import Tensor, nn

from ahpa_scale.models.backbone import Backbone
from ahpa_scale.models.description import Convention
from ahpa_scale.models.flow import VPPath


class _Wrapped(nn.Module):
    """Has the attributes of the backbone that samplers need, and its weights under `model`."""

    def __init__(self, model: Backbone) -> None:
        super().__init__()
        self.model = model
        self.in_channels, self.input_size = model.in_channels, model.input_size
        self.num_classes, self.null_label = model.num_classes, model.null_label


class OfficialSiTVelocity(_Wrapped):
    """A model that holds released SiT weights, called with this package's time.

    SiT's released weights run from noise at t = 0 to data at t = 1 (arXiv 2401.08740, and its
    code's ``transport``). With s = 1 - t the path is the same and dx/dt = -dx/ds, hence
    v(x, t) = -v_SiT(x, 1 - t).
    """

    def forward(self, x_BCHW: Tensor, t_B: Tensor, condition_B: Tensor) -> Tensor:
        return -self.model(x_BCHW, 1.0 - t_B, condition_B)


class OfficialDiTVelocity(_Wrapped):
    """A model that holds released DiT weights, which predict the noise at steps 0 to 999.

    DiT (arXiv 2212.09748) has DDPM's linear schedule, here `VPPath`, and is asked at step
    1000 t - 1, as DPM-Solver asks a discrete model (arXiv 2206.00927; ``model_wrapper`` of its
    code). With x = alpha x_0 + sigma eps, the velocity alpha' x_0 + sigma' eps is
    (alpha' / alpha) x + (sigma' - sigma alpha' / alpha) eps.
    """

    def __init__(self, model: Backbone) -> None:
        super().__init__(model)
        self.path = VPPath()

    def forward(self, x_BCHW: Tensor, t_B: Tensor, condition_B: Tensor) -> Tensor:
        step_B = (t_B * VPPath.STEPS - 1.0).clamp(min=0.0)
        eps_BCHW = self.model(x_BCHW, step_B, condition_B)
        path, t_B111 = self.path, t_B.reshape(-1, 1, 1, 1)
        ratio_B111 = path.d_alpha(t_B111) / path.alpha(t_B111)
        of_noise_B111 = path.d_sigma(t_B111) - path.sigma(t_B111) * ratio_B111
        return ratio_B111 * x_BCHW + of_noise_B111 * eps_BCHW


def official_sit_velocity(model: Backbone) -> OfficialSiTVelocity:
    """Wrap a model that holds released SiT weights for our time convention.

    The wrapper is called as ``velocity(x_BCHW, t_B, condition_B)`` with t = 0 at the data.
    """
    return OfficialSiTVelocity(model)


def as_velocity(model: Backbone, convention: Convention) -> nn.Module:
    """The model as ``velocity(x_BCHW, t_B, condition_B)`` in our time, with the attributes of a
    backbone that samplers need: `in_channels`, `input_size`, `num_classes`, `null_label`.

    Args:
        model: a network with the weights.
        convention: how its time and output are meant. 'velocity' returns the model itself.
    """
    wrappers: dict[str, type[_Wrapped]] = {
        "sit": OfficialSiTVelocity,
        "dit-eps": OfficialDiTVelocity,
    }
    return model if convention == "velocity" else wrappers[convention](model)
