# SPDX-License-Identifier: Apache-2.0
"""FSDP2 and HSDP on gloo and the CPU: fixes for two faults of torch 2.7.0.

FSDP2 asks its collectives for the mean (``ReduceOp.AVG``). gloo's reduce-scatter silently computes
the sum instead, so gradients are too large by the number of ranks. Its all-reduce (HSDP) refuses
the mean. FSDP2 already has another way, for a backend without a mean (MTIA): divide, sum, divide. A
device name chooses it, and there is no option, so the function that chooses is replaced.

HSDP keeps its all-reduced tensor alive until a device event, and requires that event. A CPU has no
events, so there is nothing to wait for and nothing to keep.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch.distributed as dist
from torch.distributed.fsdp._fully_shard import _fsdp_collectives as collectives
from torch.distributed.fsdp._fully_shard import _fsdp_param_group as param_group

_WITHOUT_MEAN = "mtia"
_original = collectives._get_gradient_divide_factors
_original_reduce = param_group.foreach_reduce


@wraps(_original)
def _divide_factors(
    reduce_scatter_group: dist.ProcessGroup,
    all_reduce_group: dist.ProcessGroup | None,
    reduce_dtype: Any,
    device_type: str = "",
) -> Any:
    if dist.get_backend(reduce_scatter_group) == dist.Backend.GLOO:
        device_type = _WITHOUT_MEAN
    return _original(reduce_scatter_group, all_reduce_group, reduce_dtype, device_type)


@wraps(_original_reduce)
def _reduce(*args: Any, **kwargs: Any) -> Any:
    scattered, scatter_event, done, reduced, reduce_event, partial = _original_reduce(
        *args, **kwargs
    )
    if reduce_event is None:
        reduced = None
    return scattered, scatter_event, done, reduced, reduce_event, partial


def mend_gloo() -> None:
    """Makes FSDP2's gradients the mean over ranks on gloo, and HSDP work there. Safe to repeat."""
    collectives._get_gradient_divide_factors = _divide_factors
    param_group.foreach_reduce = _reduce
