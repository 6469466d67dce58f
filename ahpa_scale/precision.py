# SPDX-License-Identifier: Apache-2.0
"""Where autocast applies, and in which precision a CPU evaluates and samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache

import torch
from torch import Tensor

_everywhere_alike = ContextVar("everywhere_alike", default=False)


def float32_region(tensor: Tensor) -> AbstractContextManager[object]:
    """Switches autocast off for the device of `tensor`; does nothing on devices without autocast,
    such as meta.
    """
    device = tensor.device.type
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(device_type=device, enabled=False)


@cache
def cpu_has_bf16() -> bool:
    """Whether oneDNN has bfloat16 kernels for this processor. Other processors emulate bfloat16, at
    a tenth of float32's speed or less.
    """
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def inference_autocast(device: torch.device) -> torch.autocast:
    """bfloat16 autocast on a CPU with bfloat16 kernels, which are up to four times as fast. Float32
    on other CPUs, and the caller's autocast on other devices.
    """
    if device.type != "cpu":
        dtype = torch.get_autocast_dtype(device.type)
        enabled = torch.is_autocast_enabled(device.type)
        return torch.autocast(device.type, dtype=dtype, enabled=enabled)
    enabled = cpu_has_bf16() and not _everywhere_alike.get()
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled)


def evaluation_autocast(device: torch.device) -> AbstractContextManager[None]:
    """In which precision a model is evaluated, in the run and after it: bfloat16 on GPUs, as in
    training. On a CPU the measurements choose their own.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


@contextmanager
def same_on_every_cpu() -> Iterator[None]:
    """Makes `inference_autocast` use float32 on every CPU, so that results of different processors
    differ only by rounding.
    """
    token = _everywhere_alike.set(True)
    try:
        yield
    finally:
        _everywhere_alike.reset(token)


@contextmanager
def full_float32() -> Iterator[None]:
    """Float32 products and convolutions without TensorFloat-32, which Composer turns on for the
    one, and torch for the other.
    """
    products = torch.get_float32_matmul_precision()
    convolutions = torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
