# SPDX-License-Identifier: Apache-2.0
"""A model's floating-point operations per picture."""

from __future__ import annotations

import torch
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from ahpa_scale.models.backbone import Backbone

#: The backward pass multiplies twice as often as the forward pass.
PASSES = 3


def forward_flops(backbone: Backbone) -> int:
    """FLOPs of one picture's forward pass: two for each multiply-add of a matrix product or
    convolution, as papers count them, and none for the rest. Nothing is computed.

    Args:
        backbone: on any device; only the shapes of its weights are used.
    """
    # Not its state dict, which lacks buffers that are not saved.
    tensors = (*backbone.named_parameters(), *backbone.named_buffers())
    meta = {name: tensor.to("meta") for name, tensor in tensors}
    side = backbone.input_size
    x_BCHW = torch.empty(1, backbone.in_channels, side, side, device="meta")
    t_B = torch.empty(1, device="meta")
    condition_B = torch.empty(1, dtype=torch.long, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        functional_call(backbone, meta, (x_BCHW, t_B, condition_B))
    return int(counter.get_total_flops())


def training_flops(backbone: Backbone) -> int:
    """FLOPs of one picture's training by the convention of model FLOPs utilization (Chowdhery et
    al., arXiv 2204.02311): the forward pass three times. Recomputed blocks count once; the
    alignment, the VAE, the optimizer and the average don't count at all.
    """
    return PASSES * forward_flops(backbone)
