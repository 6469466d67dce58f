# SPDX-License-Identifier: Apache-2.0
"""All that depends on torch's version, without importing it: `doctor` looks at any version. Two are
tested: 2.7.0, as Composer 0.32.1 caps it below 2.7.1, and 2.14, by the overrides of
requirements/new.txt.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import cache, wraps
from typing import Any

#: The requirements of the default and of the new one.
DEFAULT, NEW = "torch>=2.7.0,<2.7.1", "torch>=2.14.1,<2.15"

#: The name of a device for which FSDP2 doesn't ask for a mean.
_WITHOUT_MEAN = "mtia"
#: Chooses sums since torch 2.9, https://github.com/pytorch/pytorch/pull/155915.
_METHOD = "set_force_sum_reduction_for_comms"


def average_on_gloo(modules: Iterable[Any]) -> None:
    """Makes the gradients of sharded modules the mean over ranks on gloo as well.

    FSDP2 asks its collectives for the mean. gloo's reduce-scatter silently computes the sum instead
    (https://github.com/pytorch/pytorch/issues/162338), so gradients are too large by the number of
    ranks. Its all-reduce (HSDP) refuses the mean. FSDP2 has another way: divide, sum, divide. Where
    torch has no method that chooses it, the function that chooses is replaced.

    Args:
        modules: each one that ``fully_shard`` returned. With torch 2.7 all others of this process
            are mended too.
    """
    import torch.distributed as dist

    if dist.get_backend() != dist.Backend.GLOO:
        return
    for module in modules:
        if not hasattr(module, _METHOD):
            _mend_torch_2_7()
            return
        getattr(module, _METHOD)(True)


def accept_old_collectives() -> None:
    """Keeps torch 2.14 from warning of DeepSpeed's collectives, a line a parameter in stage 3.

    They have other names there (``all_gather_single``, ``reduce_scatter_single``), and the old ones
    still do the same. Nothing that a user could change.
    """
    old = r"`torch\.distributed\.(all_gather_into|reduce_scatter)_tensor` is deprecated"
    warnings.filterwarnings("ignore", message=old, category=FutureWarning)


@cache
def _mend_torch_2_7() -> None:
    import torch.distributed as dist
    from torch.distributed.fsdp._fully_shard import _fsdp_collectives, _fsdp_param_group

    # Their functions have other types in later versions.
    collectives: Any = _fsdp_collectives
    param_group: Any = _fsdp_param_group
    divide_factors = collectives._get_gradient_divide_factors
    reduce = param_group.foreach_reduce

    @wraps(divide_factors)
    def sums_on_gloo(
        reduce_scatter_group: Any, all_reduce_group: Any, reduce_dtype: Any, device_type: str = ""
    ) -> Any:
        if dist.get_backend(reduce_scatter_group) == dist.Backend.GLOO:
            device_type = _WITHOUT_MEAN
        return divide_factors(reduce_scatter_group, all_reduce_group, reduce_dtype, device_type)

    @wraps(reduce)
    def keeps_nothing_on_cpu(*args: Any, **kwargs: Any) -> Any:
        """HSDP keeps its all-reduced tensor alive until a device event, and requires that event. A
        CPU has no events, so there is nothing to wait for and nothing to keep.
        """
        scattered, scatter_event, done, reduced, reduce_event, partial = reduce(*args, **kwargs)
        if reduce_event is None:
            reduced = None
        return scattered, scatter_event, done, reduced, reduce_event, partial

    collectives._get_gradient_divide_factors = sums_on_gloo
    param_group.foreach_reduce = keeps_nothing_on_cpu
