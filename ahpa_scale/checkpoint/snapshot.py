# SPDX-License-Identifier: Apache-2.0
"""A training state -> what this rank writes: copies in host memory, and plain state.

The main thread takes the copy between two batches. The rest of a save runs during training.
"""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from composer.core import Algorithm, Callback, State
from composer.utils import dist
from torch import Tensor

from ahpa_scale.checkpoint.errors import CheckpointError
from ahpa_scale.checkpoint.pieces import all_pieces, partition_of, trainable
from ahpa_scale.checkpoint.plain import encode
from ahpa_scale.checkpoint.reader import RANK_STATE

#: Key of an optimizer group that is not an option.
_PARAMS = "params"


@dataclass
class Snapshot:
    """What one rank writes.

    Attributes:
        tensors: copies on the CPU, ``<name>@<first element>`` -> ``[n]``.
        metadata: metadata of the rank's file.
        shapes: shapes of the whole tensors, by name.
        state: the state that all ranks share, as JSON.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, list[int]] = field(default_factory=dict)
    state: Any = None

    def state_file(self) -> str:
        """Content of the file that holds the shared state."""
        return json.dumps({"shapes": self.shapes, "state": self.state}) + "\n"


class Photographer:
    """Takes snapshots. Reuses its buffers, because page-locked memory is slow to allocate. So each
    snapshot is valid only until the next one is taken.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    @torch.no_grad()
    def take(self, state: State) -> Snapshot:
        """Copies what this rank holds. Every rank must call it."""
        snapshot = Snapshot()
        rank = dist.get_global_rank()
        live: dict[str, Tensor] = {}
        for name, piece in all_pieces(state).items():
            snapshot.shapes[name] = list(piece.shape)
            first, values_n = piece.share()
            if values_n.numel() or (not torch.Size(piece.shape).numel() and piece.copy == 0):
                live[f"{name}@{first}"] = values_n
        shared: dict[str, Tensor] = {}
        snapshot.state = encode(shared_state(state), "state/", shared)
        own: dict[str, Tensor] = {}
        snapshot.metadata[RANK_STATE] = json.dumps(encode(random_states(), f"rank{rank}/", own))
        for name, value in [*(shared.items() if rank == 0 else ()), *own.items()]:
            live[f"{name}@0"] = value.reshape(-1)
        snapshot.shapes |= {name: list(value.shape) for name, value in shared.items()}
        snapshot.tensors = self._copied(live)
        return snapshot

    def _copied(self, live: dict[str, Tensor]) -> dict[str, Tensor]:
        copies = {}
        on_device = False
        for name, value in live.items():
            buffer = self._buffers.get(name)
            if buffer is None or (buffer.shape, buffer.dtype) != (value.shape, value.dtype):
                buffer = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
            copies[name] = buffer.copy_(value, non_blocking=True)
            on_device = on_device or value.is_cuda
        if on_device:
            torch.cuda.synchronize()
        self._buffers = copies
        return copies


def shared_state(state: State) -> dict[str, Any]:
    """The state that all ranks share, without tensors as large as the weights."""
    return {
        "timestamp": state.timestamp.state_dict(),
        "schedulers": [scheduler.state_dict() for scheduler in state.schedulers],
        "scaler": None if state.scaler is None else state.scaler.state_dict(),
        "groups": optimizer_groups(state),
        "algorithms": _states(state.algorithms),
        "callbacks": _states(state.callbacks),
        "data": data_position(state),
    }


def optimizer_groups(state: State) -> list[dict[str, Any]]:
    """The optimizer's groups: their options, and the names of their parameters."""
    (optimizer,) = state.optimizers
    return [
        {**{k: v for k, v in group.items() if k != _PARAMS}, _PARAMS: names}
        for group, names in zip(optimizer.param_groups, group_names(state), strict=True)
    ]


def group_names(state: State) -> list[list[str]]:
    """The names of each optimizer group's parameters, sorted."""
    (optimizer,) = state.optimizers
    partition = partition_of(state.model)
    names: list[list[str]] = [[] for _ in optimizer.param_groups]
    if partition is not None:
        for name, stretch in partition.stretches.items():
            names[partition.group(stretch.flat)].append(name)
    else:
        number = {p: n for n, group in enumerate(optimizer.param_groups) for p in group[_PARAMS]}
        for name, parameter in trainable(state.model).items():
            if parameter in number:
                names[number[parameter]].append(name)
    return [sorted(group) for group in names]


def data_position(state: State) -> dict[str, Any] | None:
    """The run's position in the data, as the data set reports it."""
    train: dict[str, Any] | None = state._dataset_state_dict()["train"]
    if train is not None and "epoch" in train:
        # At an epoch's end streaming 0.13 still reports the old epoch. It would be trained twice.
        train = {**train, "epoch": state.timestamp.epoch.value}
    return train


def random_states() -> dict[str, Any]:
    """States of this process's generators: Python's, numpy's, torch's and the device's."""
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.random.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def load_random_states(states: dict[str, Any]) -> None:
    """Sets the generators to the states from `random_states`."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.random.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _states(owners: Iterable[Algorithm | Callback]) -> list[tuple[str, Any]]:
    """Class and state of each owner that has state. Per-weight tensors are saved as pieces."""
    states = []
    for owner in owners:
        kind = type(owner).__qualname__
        content = owner.progress() if hasattr(owner, "parts") else owner.state_dict()
        # Composer adds ``repr`` even to algorithms without state.
        content = {key: value for key, value in content.items() if key != "repr"}
        if not content:
            continue
        try:
            encode(content, "", {})
        except CheckpointError as error:
            warnings.warn(f"the state of {kind} is left out of checkpoints: {error}", stacklevel=2)
            continue
        states.append((kind, content))
    return states
