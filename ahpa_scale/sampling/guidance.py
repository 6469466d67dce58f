# SPDX-License-Identifier: Apache-2.0
"""The velocity that a sampler follows: the model's own, or a guided one.

Shape legend: B batch, C channels, H W.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ahpa_scale.errors import UserError
from ahpa_scale.sampling.settings import SamplerSettings

#: velocity(x_BCHW, t_B, condition_B) -> [B, C, H, W]
Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]
#: field(x_BCHW, time): one time on the host for all samples, or float32 [B] on their device.
Field = Callable[[Tensor, "float | Tensor"], Tensor]


def velocity_field(
    model: Velocity, labels_B: Tensor, settings: SamplerSettings, guide: Velocity | None
) -> Field:
    """The velocity as a function of state and time, float32.

    Args:
        model: the model that is sampled.
        labels_B: int64 classes.
        settings: how it is guided.
        guide: the model of ``settings.guide``, called with the classes; None guides by the model's
            own null class.

    Raises:
        UserError: guidance without a null class.
    """

    def plain(x_BCHW: Tensor, time: float | Tensor) -> Tensor:
        return model(x_BCHW, _times(x_BCHW, time), labels_B).float()

    if not settings.guided:
        return plain
    pair = _with_null(model, labels_B, settings) if guide is None else _with(model, labels_B, guide)
    low, high = settings.guidance_interval

    def field(x_BCHW: Tensor, time: float | Tensor) -> Tensor:
        if isinstance(time, float):
            if not low <= time <= high:
                return plain(x_BCHW, time)
            return _mixed(*pair(x_BCHW, _times(x_BCHW, time)), settings)
        v, v_guide = pair(x_BCHW, time)
        # Every sample has its own time, and asking for it would wait for the device.
        inside_B111 = ((low <= time) & (time <= high)).view(-1, 1, 1, 1)
        return torch.where(inside_B111, _mixed(v, v_guide, settings), v)

    return field


def _with_null(
    model: Velocity, labels_B: Tensor, settings: SamplerSettings
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The velocities with the class and with the null class, in one pass."""
    null_label = getattr(model, "null_label", None)
    if null_label is None:
        raise UserError(
            f"guidance_scale {settings.guidance_scale} needs a model with a null class "
            "(class_dropout_prob > 0); use guidance_scale 1.0"
        )
    condition_2B = torch.cat([labels_B, torch.full_like(labels_B, null_label)])

    def pair(x_BCHW: Tensor, t_B: Tensor) -> tuple[Tensor, Tensor]:
        both = model(torch.cat([x_BCHW, x_BCHW]), torch.cat([t_B, t_B]), condition_2B).float()
        v, v_null = both.chunk(2)
        return v, v_null

    return pair


def _with(
    model: Velocity, labels_B: Tensor, guide: Velocity
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The velocities of two models with the class."""

    def pair(x_BCHW: Tensor, t_B: Tensor) -> tuple[Tensor, Tensor]:
        return model(x_BCHW, t_B, labels_B).float(), guide(x_BCHW, t_B, labels_B).float()

    return pair


def _mixed(v_BCHW: Tensor, guide_BCHW: Tensor, settings: SamplerSettings) -> Tensor:
    guided_BCHW = guide_BCHW + settings.guidance_scale * (v_BCHW - guide_BCHW)
    channels = settings.guidance_channels
    if channels is None:
        return guided_BCHW
    return torch.cat([guided_BCHW[:, :channels], v_BCHW[:, channels:]], dim=1)


def _times(x_BCHW: Tensor, time: float | Tensor) -> Tensor:
    if isinstance(time, Tensor):
        return time
    return torch.full((x_BCHW.shape[0],), time, device=x_BCHW.device)
