# SPDX-License-Identifier: Apache-2.0
"""Prints one line about the running engine, and ends a run that has the wrong one."""

from __future__ import annotations

from collections.abc import Iterable

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from ahpa_scale import console
from ahpa_scale.algorithms.ema import EMA
from ahpa_scale.algorithms.zero import ZeroFront
from ahpa_scale.callbacks.common import writes_files

KINDS = ("weights", "gradients", "optimizer", "average")


class EngineLine(Callback):
    """Compares the engine that runs with the one that was asked for, and prints its memory.

    The comparison is made when training starts, on the objects that train. After the first batch,
    when gradients and moments exist, rank 0 prints one line with parameters, shards and the bytes
    that each rank holds.

    Args:
        engine: ``ddp``, ``fsdp2``, ``hsdp``, ``zero1``, ``zero2`` or ``zero3``.

    Attributes:
        memory: bytes that this rank holds, by kind: weights, gradients, optimizer, average; empty
            before the first batch has ended.
        text: the line; empty before.

    Raises:
        RuntimeError: at the start of training: another engine runs.
    """

    def __init__(self, engine: str) -> None:
        self.engine = engine
        self.memory: dict[str, int] = {}
        self.text = ""

    def fit_start(self, state: State, logger: Logger) -> None:
        """Compares."""
        del logger
        running = running_engine(state.model)
        if running != self.engine:
            raise RuntimeError(f"the run asked for the engine {self.engine}, and {running} runs")

    def batch_end(self, state: State, logger: Logger) -> None:
        """Measures once."""
        del logger
        if self.text:
            return
        self.memory = memory(state)
        self.text = self._line(state)
        if writes_files():
            console.say(self.text, fields={"engine": self.engine, "bytes": self.memory})

    def _line(self, state: State) -> str:
        mesh = _mesh(state.model)
        ranks = dist.get_world_size()
        shards = ranks if isinstance(state.model, ZeroFront) else 1
        if mesh is not None:
            shards = mesh.size(mesh.ndim - 1)
        held = " + ".join(f"{_size(self.memory[kind])} {kind}" for kind in KINDS)
        files = state.model.partition.file_bytes() if isinstance(state.model, ZeroFront) else 0
        if files:
            held += f", and {_size(files)} in files"
        return (
            f"engine {self.engine}: {ranks} ranks, {ranks // shards} x {shards} shards, "
            f"{_parameters(state.model) / 1e6:.1f} M trainable parameters; each rank holds "
            f"{_size(sum(self.memory.values()))}: {held}"
        )


def running_engine(model: nn.Module) -> str:
    """The engine that trains a Trainer's model, recognised by the model's types."""
    if isinstance(model, ZeroFront):
        return f"zero{model.engine.zero_optimization_stage()}"
    mesh = _mesh(model)
    if mesh is not None:
        return "fsdp2" if mesh.ndim == 1 else "hsdp"
    if isinstance(model, DistributedDataParallel) or dist.get_world_size() == 1:
        return "ddp"
    return "nothing that keeps the ranks together"


def memory(state: State) -> dict[str, int]:
    """Bytes of tensors that this rank holds for the model's state, by kind."""
    averages = [
        algorithm.shadow.values() for algorithm in state.algorithms if isinstance(algorithm, EMA)
    ]
    average = sum(_bytes(tensors) for tensors in averages)
    if isinstance(state.model, ZeroFront):
        return {**state.model.partition.memory(), "average": average}
    parameters = list(state.model.parameters())
    held = [entry for optimizer in state.optimizers for entry in optimizer.state.values()]
    return {
        "weights": _bytes(parameters),
        "gradients": _bytes(p.grad for p in parameters if p.grad is not None),
        "optimizer": _bytes(v for entry in held for v in entry.values() if isinstance(v, Tensor)),
        "average": average,
    }


def _mesh(model: nn.Module) -> DeviceMesh | None:
    sharded = (p for p in model.parameters() if isinstance(p, DTensor))
    first = next(sharded, None)
    return None if first is None else first.device_mesh


def _parameters(model: nn.Module) -> int:
    trainable = (p for p in model.parameters() if p.requires_grad)
    return sum(int(getattr(p, "ds_numel", p.numel())) for p in trainable)


def _bytes(tensors: Iterable[Tensor]) -> int:
    local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    return sum(tensor.numel() * tensor.element_size() for tensor in local)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
