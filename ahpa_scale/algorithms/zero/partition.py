# SPDX-License-Identifier: Apache-2.0
"""This rank's part of every parameter under ZeRO, by name: a view of DeepSpeed's flat shards.

DeepSpeed 0.19.8 keeps float32 shards in flat tensors, one per optimizer group (stages 1 and 2) or
sub-group (stage 3). A parameter's part is a stretch of it. Only this file knows that layout.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ahpa_scale.algorithms.zero.files import in_file


@dataclass(frozen=True)
class Stretch:
    """Where this rank's part of one parameter lies.

    Attributes:
        flat: number of the flat tensor.
        start: its first element there.
        first: its first element in the whole, flattened parameter.
        numel: its length; 0 where the rank holds none of the parameter.
        shape: of the whole parameter.
    """

    flat: int
    start: int
    first: int
    numel: int
    shape: torch.Size


class Partition:
    """Reads and writes the float32 shards by parameter name.

    Args:
        optimizer: DeepSpeed's ZeRO optimizer.
        names: trainable parameter -> its name.
        stage: 1 to 3.
    """

    def __init__(self, optimizer: Any, names: Mapping[nn.Parameter, str], stage: int) -> None:
        self._optimizer = optimizer
        self.stage = stage
        stretches = self._whole_shards(names) if stage == 3 else self._flat_shards(names)
        self.stretches: dict[str, Stretch] = dict(stretches)

    @property
    def flats(self) -> list[Tensor]:
        """The flat float32 shards: what the inner optimizer updates."""
        key = (
            "fp32_partitioned_groups_flat" if self.stage == 3 else "single_partition_of_fp32_groups"
        )
        flats: list[Tensor] = getattr(self._optimizer, key)
        return flats

    def group(self, flat: int) -> int:
        """The optimizer group that a flat shard belongs to."""
        if self.stage < 3:
            return flat
        group: int = self._optimizer.sub_group_to_group_id[flat]
        return group

    def masters(self) -> dict[str, Tensor]:
        """This rank's part of each weight, float32 ``[n]``: live views, which training moves."""
        flats = self.flats
        return {
            name: self.cut(name, flats[stretch.flat]) for name, stretch in self.stretches.items()
        }

    def cut(self, name: str, flat: Tensor) -> Tensor:
        """The part of `name` in a flat tensor with the layout of its shard."""
        stretch = self.stretches[name]
        return flat.detach().narrow(0, stretch.start, stretch.numel)

    def memory(self) -> dict[str, int]:
        """Bytes that this rank holds in memory: ``weights``, ``gradients`` and ``optimizer``
        (moments, and float32 shards where they are not the weights themselves).
        """
        weights, gradients, optimizer = self._held()
        return {
            "weights": _bytes(tensor for tensor in weights if not in_file(tensor)),
            "gradients": 4 * sum(gradients),
            "optimizer": _bytes(tensor for tensor in optimizer if not in_file(tensor)),
        }

    def file_bytes(self) -> int:
        """Bytes of weights and optimizer that this rank keeps in files."""
        weights, _, optimizer = self._held()
        return _bytes(tensor for tensor in [*weights, *optimizer] if in_file(tensor))

    def _held(self) -> tuple[list[Tensor], list[int], list[Tensor]]:
        """Weights that compute; gradient counts; tensors that the optimizer keeps."""
        zero, flats = self._optimizer, self.flats
        if self.stage == 3:
            weights = list(zero.fp16_partitioned_groups_flat)
            gradients = [flat.numel() for flat in flats]
        else:
            weights = list(zero.bit16_groups_flat)
            # Stage 1 keeps whole gradients until it reduces them; stage 2 keeps its own part.
            gradients = [tensor.numel() for tensor in (weights if self.stage == 1 else flats)]
        there = {tensor.untyped_storage().data_ptr() for tensor in weights}
        masters = [tensor for tensor in flats if tensor.untyped_storage().data_ptr() not in there]
        held = zero.optimizer.state.values()
        moments = [value for entry in held for value in entry.values() if isinstance(value, Tensor)]
        return weights, gradients, [*masters, *moments]

    @torch.no_grad()
    def publish(self) -> None:
        """Makes the model compute with the float32 shards as they are now; every rank must call it.

        These are the last lines of DeepSpeed's own step; stage 3 has no function for them.
        """
        zero = self._optimizer
        if self.stage < 3:
            zero.update_lp_params()
            return
        zero._partition_all_parameters()
        for number in range(len(zero.fp16_groups)):
            zero._reassign_or_swap_out_partitioned_parameters(number)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)

    def _flat_shards(self, names: Mapping[nn.Parameter, str]) -> Iterator[tuple[str, Stretch]]:
        """Stages 1 and 2: a group's parameters lie in one flat tensor, cut evenly by rank."""
        zero = self._optimizer
        for number, parameters in enumerate(zero.round_robin_bit16_groups):
            size = zero.partition_size[number]
            begin = size * dist.get_rank(zero.real_dp_process_group[number])
            offsets = zero.round_robin_bit16_offsets[number]
            for parameter, offset in zip(parameters, offsets, strict=True):
                first = max(begin - offset, 0)
                last = min(begin + size - offset, parameter.numel())
                numel = max(last - first, 0)
                start = max(offset - begin, 0) if numel else 0
                shape = parameter.shape
                yield names[parameter], Stretch(number, start, first, numel, shape)

    def _whole_shards(self, names: Mapping[nn.Parameter, str]) -> Iterator[tuple[str, Stretch]]:
        """Stage 3: each parameter is cut evenly by rank, padded at its end."""
        for number, parameters in enumerate(self._optimizer.fp16_groups):
            start = 0
            for parameter in parameters:
                size = parameter.partition_numel()
                first = min(size * dist.get_rank(parameter.ds_process_group), parameter.ds_numel)
                numel = min(size, parameter.ds_numel - first)
                shape = torch.Size(parameter.ds_shape)
                yield names[parameter], Stretch(number, start, first, numel, shape)
                start += size


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
