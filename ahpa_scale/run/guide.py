# SPDX-License-Identifier: Apache-2.0
"""Opens the weaker model that guides a sampler (autoguidance, Karras et al. 2024)."""

from __future__ import annotations

import torch
from torch import nn

from ahpa_scale.errors import UserError
from ahpa_scale.run.drawable import open_model

_SAME = ("in_channels", "input_size", "num_classes")


def open_guide(place: str, model: nn.Module, device: torch.device) -> nn.Module:
    """The guide at a path or URL, on a device, in evaluation mode.

    Args:
        place: any checkpoint or file that `open_model` reads.
        model: the model that it will guide.
        device: where both run.

    Raises:
        UserError: there is no model, or one of other latents or classes.
    """
    guide = open_model(place).backbone
    for name in _SAME:
        own, other = getattr(model, name), getattr(guide, name)
        if own != other:
            raise UserError(f"{place} can't guide: its {name} is {other}, and the model's is {own}")
    return guide.to(device).eval()
