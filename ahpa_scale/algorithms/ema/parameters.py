# SPDX-License-Identifier: Apache-2.0
"""The weights that an average follows: their names, and how they lie on this rank (whole, as FSDP2
shards, or as stretches of ZeRO's).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from ahpa_scale.errors import UserError


def plain_name(name: str) -> str:
    """A parameter's name without what DDP, torch.compile and checkpoint wrappers add to it."""
    name = name.removeprefix("module.")
    return name.replace("_orig_mod.", "").replace("_checkpoint_wrapped_module.", "")


class Shards(Protocol):
    """This rank's float32 parts of the weights, where the model itself doesn't hold them: attribute
    ``partition`` of a model under ZeRO.
    """

    def masters(self) -> Mapping[str, Tensor]:
        """Live parts ``[n]`` by plain name."""

    def publish(self) -> None:
        """Makes the model compute with the current parts; every rank calls it."""


def shards_of(model: nn.Module) -> Shards | None:
    """The shards that a model's weights lie in, None where it holds its weights (or DTensors)."""
    partition: Shards | None = getattr(model, "partition", None)
    return partition


def tracked_parameters(model: nn.Module, exclude: Sequence[str] = ()) -> dict[str, Tensor]:
    """The weights an average follows, by plain name: trainable and not under an excluded prefix.

    Raises:
        UserError: nothing is left.
    """
    reshard(model)
    shards = shards_of(model)
    named: Mapping[str, Tensor]
    if shards is not None:
        named = shards.masters()
    else:
        trainable = ((n, p) for n, p in model.named_parameters() if p.requires_grad)
        named = {plain_name(name): parameter for name, parameter in trainable}
    tracked = {n: weight for n, weight in named.items() if not n.startswith(tuple(exclude))}
    if not tracked:
        raise UserError(f"EMA has no parameters to follow (exclude={list(exclude)})")
    return tracked


def local_part(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor (sharing its memory); any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def reshard(model: nn.Module) -> None:
    """Drop gathered copies of FSDP2 parameters, so that the model holds the shards themselves.

    A module may stay gathered after a forward without backward; writing to the shards would then
    not reach the next forward. Costs nothing where nothing is gathered.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
