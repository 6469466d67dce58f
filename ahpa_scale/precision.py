# SPDX-License-Identifier: Apache-2.0
"""A region in which autocast leaves float32 alone."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def float32_region(tensor: Tensor) -> AbstractContextManager[object]:
    """Switches autocast off for the device of `tensor`; does nothing on devices without autocast,
    such as meta.
    """
    device = tensor.device.type
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(device_type=device, enabled=False)
