# SPDX-License-Identifier: Apache-2.0
"""Which stretch of which tensor this rank holds, under every engine.

DDP holds whole tensors, FSDP2 holds rows, ZeRO holds stretches of flat tensors. Each is a stretch
of the whole, flattened tensor. Checkpoints are written and read as such stretches, so any engine on
any number of ranks can load what any other saved.

Names: ``model/<name>``, ``optim/<parameter>/<key>``, ``algorithms/<class>/<parameter>``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from composer.core import Algorithm, State
from composer.utils import dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard

from ahpa_scale.algorithms.ema import plain_name, reshard

MODEL, OPTIMIZER, ALGORITHMS = "model/", "optim/", "algorithms/"


@dataclass(frozen=True)
class Piece:
    """This rank's part of one tensor.

    Attributes:
        first: index of its first element in the whole, flattened tensor.
        local: the live part, of any shape; writing to it changes the training state.
        shape: shape of the whole tensor.
        copy: index of this rank among the ranks that hold the same part.
        copies: how many ranks hold it; they share the writing.
    """

    first: int
    local: Tensor
    shape: tuple[int, ...]
    copy: int = 0
    copies: int = 1

    def share(self) -> tuple[int, Tensor]:
        """What this rank writes: index of the first element in the whole, and values ``[n]``."""
        flat_n = self.local.detach().reshape(-1)
        start, end = (
            flat_n.numel() * number // self.copies for number in (self.copy, self.copy + 1)
        )
        return self.first + start, flat_n[start:end]

    @torch.no_grad()
    def fill(self, values_n: Tensor) -> None:
        """Copies values ``[local.numel()]`` into `local`."""
        self.local.copy_(values_n.view(self.local.shape))


class Gathered(Piece):
    """A frozen parameter that ZeRO 3 shards. `local` is a copy of the whole parameter."""

    @torch.no_grad()
    def fill(self, values_n: Tensor) -> None:
        """Every rank must call it."""
        import deepspeed

        parameter: Any = self.local.sharded  # type: ignore[attr-defined]
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.copy_(values_n.view(self.shape))


def all_pieces(state: State) -> dict[str, Piece]:
    """All tensors of model, optimizer and sharded algorithms. Every rank must call it."""
    return dict([*model_pieces(state), *optimizer_pieces(state), *algorithm_pieces(state)])


def model_pieces(state: State) -> Iterator[tuple[str, Piece]]:
    """Parameters and buffers, named as in the bare model."""
    reshard(state.model)
    partition = partition_of(state.model)
    masters = {} if partition is None else partition.masters()
    for name, value in state.model.state_dict(keep_vars=True).items():
        plain = plain_name(name)
        if plain in masters:
            yield MODEL + plain, part_piece(partition, plain, masters[plain])
        else:
            yield MODEL + plain, piece_of(value)


def optimizer_pieces(state: State) -> Iterator[tuple[str, Piece]]:
    """What the optimizer keeps for each parameter."""
    (optimizer,) = state.optimizers
    partition = partition_of(state.model)
    if partition is not None:
        yield from _flat_optimizer_pieces(optimizer, partition)
        return
    for name, parameter in trainable(state.model).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            yield f"{OPTIMIZER}{name}/{key}", piece_of(value)


def _flat_optimizer_pieces(optimizer: Any, partition: Any) -> Iterator[tuple[str, Piece]]:
    for name, stretch in partition.stretches.items():
        flat = partition.flats[stretch.flat]
        for key, value in optimizer.state.get(flat, {}).items():
            if value.dim() and value.shape == flat.shape:
                piece = part_piece(partition, name, partition.cut(name, value))
            else:
                piece = piece_of(value)
            yield f"{OPTIMIZER}{name}/{key}", piece


def algorithm_pieces(state: State) -> Iterator[tuple[str, Piece]]:
    """Tensors that algorithms keep per weight. They are sharded like the weights."""
    partition = partition_of(state.model)
    for algorithm in state.algorithms:
        for name, value in parts_of(algorithm).items():
            full = f"{ALGORITHMS}{type(algorithm).__qualname__}/{name}"
            if partition is not None and name in partition.stretches:
                yield full, part_piece(partition, name, value)
            else:
                yield full, piece_of(value)


def parts_of(algorithm: Algorithm) -> Mapping[str, Tensor]:
    """The tensors that an algorithm keeps per parameter, from its method ``parts``."""
    parts: Mapping[str, Tensor] = algorithm.parts() if hasattr(algorithm, "parts") else {}
    return parts


def piece_of(value: Tensor) -> Piece:
    """This rank's piece of a tensor: rows of a DTensor, or a tensor that every rank holds whole."""
    if isinstance(value, DTensor):
        return _rows(value)
    own, world = dist.get_global_rank(), dist.get_world_size()
    if hasattr(value, "ds_id"):
        whole = _gathered(value)
        return Gathered(0, whole, tuple(whole.shape), own, world)
    return Piece(0, value, tuple(value.shape), own, world)


def part_piece(partition: Any, name: str, part_n: Tensor) -> Piece:
    """This rank's piece of a parameter that ZeRO shards."""
    stretch = partition.stretches[name]
    return Piece(stretch.first, part_n, tuple(stretch.shape))


def _rows(value: DTensor) -> Piece:
    """FSDP2 splits the first dimension like ``torch.chunk``. HSDP also replicates the parts."""
    rows, shards, index, copies, copy = value.shape[0] if value.dim() else 1, 1, 0, 1, 0
    for size, own, placement in zip(
        value.device_mesh.shape,
        value.device_mesh.get_coordinate() or (),
        value.placements,
        strict=True,
    ):
        if isinstance(placement, Replicate):
            copies, copy = copies * size, copy * size + own
        else:
            assert placement == Shard(0)
            assert shards == 1, "one mesh dimension shards"
            shards, index = size, own
    first_row = min(index * -(-rows // shards), rows)
    row = value.numel() // rows if rows else 0
    return Piece(first_row * row, value.to_local(), tuple(value.shape), copy, copies)


def partition_of(model: nn.Module) -> Any:
    """ZeRO's partition of the weights (attribute ``partition``); None under other engines."""
    return getattr(model, "partition", None)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by plain name."""
    return {plain_name(n): p for n, p in model.named_parameters() if p.requires_grad}


def _gathered(parameter: Any) -> Tensor:
    """The whole of a frozen parameter that ZeRO 3 shards. Every rank must call it."""
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        value: Any = parameter.detach().clone()
    value.sharded = parameter
    whole: Tensor = value
    return whole
