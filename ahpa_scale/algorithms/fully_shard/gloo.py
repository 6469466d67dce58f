# SPDX-License-Identifier: Apache-2.0
"""FSDP2 and HSDP on gloo and the CPU: two faults of torch 2.7.0, mended where they are.

FSDP2 asks its collectives for the mean (``ReduceOp.AVG``). gloo's reduce-scatter takes that for a
sum and says nothing, so gradients come out too large by the number of ranks, and its all-reduce
(HSDP) refuses it. FSDP2 has another way already for a backend without a mean (MTIA's): divide, sum,
divide. It is chosen by a device name and has no option, so the one function that chooses is
replaced.

HSDP keeps the tensor that it all-reduces alive until a device event, and insists on the event,
which a CPU doesn't have. Where there is none, there is nothing to wait for and nothing to keep.
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
    """Makes FSDP2's gradients the mean over ranks on gloo, and HSDP work there; repeats
    harmlessly.
    """
    collectives._get_gradient_divide_factors = _divide_factors
    param_group.foreach_reduce = _reduce
