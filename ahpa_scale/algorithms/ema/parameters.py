# SPDX-License-Identifier: Apache-2.0
"""The parameters that an average follows: their names, and plain, DDP or sharded (FSDP2) layout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def plain_name(name: str) -> str:
    """A parameter's name without what DDP, torch.compile and checkpoint wrappers add to it."""
    name = name.removeprefix("module.")
    return name.replace("_orig_mod.", "").replace("_checkpoint_wrapped_module.", "")


def tracked_parameters(model: nn.Module, exclude: Sequence[str] = ()) -> dict[str, nn.Parameter]:
    """The parameters an average follows, by plain name: trainable and not under an excluded prefix.

    Raises:
        ValueError: nothing is left, or ZeRO stage 3 has taken the values out of the parameters.
    """
    reshard(model)
    named = ((plain_name(name), parameter) for name, parameter in model.named_parameters())
    found = {
        name: parameter
        for name, parameter in named
        if parameter.requires_grad and not name.startswith(tuple(exclude))
    }
    if not found:
        raise ValueError(f"EMA has no parameters to follow (exclude={list(exclude)})")
    for name, parameter in found.items():
        if hasattr(parameter, "ds_numel") and parameter.numel() != parameter.ds_numel:
            raise ValueError(
                f"EMA cannot see {name!r}: ZeRO stage 3 has partitioned it; use fsdp2 or zero2"
            )
    return found


def local_part(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor (sharing its memory); any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def reshard(model: nn.Module) -> None:
    """Drop gathered copies of FSDP2 parameters, so that the model holds the shards themselves.

    A module may stay gathered after a forward without backward; writing to the shards would then
    not reach the next forward. Free where nothing is gathered.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def same_layout(average: Tensor, parameter: Tensor) -> bool:
    """Whether both lie on one device, or are sharded alike."""
    if isinstance(average, DTensor) != isinstance(parameter, DTensor):
        return False
    if isinstance(average, DTensor) and isinstance(parameter, DTensor):
        same = average.device_mesh == parameter.device_mesh
        return same and average.placements == parameter.placements
    return average.device == parameter.device


@torch.no_grad()
def fill(average: Tensor, value: Tensor) -> None:
    """Copy ``value`` (whole, or sharded in the same or another way) into ``average``."""
    if isinstance(value, DTensor) and not same_layout(average, value):
        value = value.full_tensor()
    if isinstance(average, DTensor) and not isinstance(value, DTensor):
        # Every rank holds the whole value, so each keeps its part and nothing is sent.
        value = distribute_tensor(
            value.to(average.device), average.device_mesh, average.placements, src_data_rank=None
        )
    local_part(average).copy_(local_part(value))
