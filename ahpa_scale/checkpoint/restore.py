# SPDX-License-Identifier: Apache-2.0
"""Loads a checkpoint into a training state, whatever engine and number of ranks saved it."""

from __future__ import annotations

import datetime
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import torch
from composer.core import State, Timestamp
from torch import Tensor

from ahpa_scale.checkpoint.errors import CheckpointError
from ahpa_scale.checkpoint.pieces import (
    ALGORITHMS,
    MODEL,
    OPTIMIZER,
    Piece,
    algorithm_pieces,
    model_pieces,
    optimizer_pieces,
    partition_of,
    trainable,
)
from ahpa_scale.checkpoint.reader import Reader
from ahpa_scale.checkpoint.snapshot import data_position, group_names
from ahpa_scale.errors import UserError

#: Prefix of weights that may differ if a run only starts from another run's checkpoint.
ATTACHMENTS = "attachments."
#: Algorithms whose state (a loss scale) belongs to one engine. Other engines drop it.
_ENGINES = ("ZeRO",)
_log = logging.getLogger(__name__)


def restore(state: State, reader: Reader, *, same_run: bool, new_pass: bool | None = None) -> None:
    """Restores everything except the random number generators. Every rank must call it.

    Args:
        state: state of a built Trainer whose model is sharded, before training.
        reader: the checkpoint.
        same_run: this run saved the checkpoint, so all parts must match. Otherwise attachments may
            be missing or new.
        new_pass: whether to read the data from the beginning of a pass, in this run's own order.
            None: yes, unless `same_run`.

    Raises:
        CheckpointError: the checkpoint belongs to another model or other settings.
    """
    shared = reader.state()
    _load_states(state.algorithms, shared["algorithms"], "algorithm", same_run)
    _fill(dict(model_pieces(state)), reader, MODEL, lenient=not same_run)
    _fill_optimizer(state, reader, shared["groups"], same_run)
    _fill(dict(algorithm_pieces(state)), reader, ALGORITHMS, lenient=True)
    partition = partition_of(state.model)
    if partition is not None:
        partition.publish()
    _load_states(state.callbacks, shared["callbacks"], "callback", same_run=False)
    for scheduler, saved in zip(state.schedulers, shared["schedulers"], strict=False):
        # Keep this run's own rates: otherwise the configured values would have no effect.
        scheduler.load_state_dict({**saved, "base_lrs": scheduler.base_lrs})
    if state.scaler is not None and shared["scaler"]:
        state.scaler.load_state_dict(shared["scaler"])
    state.timestamp.load_state_dict(shared["timestamp"])
    position = shared["data"]
    if new_pass or (new_pass is None and not same_run):
        state.timestamp = _at_the_beginning(state.timestamp)
        position = data_position(state)
    if position is not None:
        state._load_dataset_state({"train": position, "eval": {}})


def _at_the_beginning(time: Timestamp) -> Timestamp:
    """The same timestamp, moved to the beginning of its pass."""
    none: Any = {f"{unit}_in_epoch": 0 for unit in ("batch", "sample", "token")}
    return time.copy(**none, epoch_wct=datetime.timedelta(0))


def _fill(pieces: Mapping[str, Piece], reader: Reader, prefix: str, lenient: bool) -> None:
    """Fills the pieces. Names must match; `lenient` exempts attachments and algorithms."""
    saved = {prefix + name for name in reader.names(prefix)}
    for name in sorted(saved ^ set(pieces)):
        side = "has no" if name in pieces else "has a"
        text = f"it {side} {name.removeprefix(prefix)!r}"
        if not lenient or (prefix == MODEL and not name.startswith(prefix + ATTACHMENTS)):
            raise CheckpointError(f"{text}: it belongs to another model")
    for name in sorted(saved & set(pieces)):
        piece = pieces[name]
        if piece.shape != reader.shapes[name]:
            raise CheckpointError(
                f"its {name.removeprefix(prefix)!r} is {_by(reader.shapes[name])}, the run's is "
                f"{_by(piece.shape)}: it belongs to another model"
            )
        _take(piece, reader, name)


def _take(piece: Piece, reader: Reader, name: str) -> None:
    piece.fill(reader.stretch(name, piece.first, piece.local.numel()))


def _fill_optimizer(
    state: State, reader: Reader, saved: Sequence[Mapping[str, Any]], same_run: bool
) -> None:
    (optimizer,) = state.optimizers
    owner = {name: group for group in saved for name in group["params"]}
    fused = {}
    for group, names in zip(optimizer.param_groups, group_names(state), strict=True):
        old = next((owner[name] for name in names if name in owner), None)
        if old is not None:
            _take_rate(group, old, same_run)
        on_device = bool(group.get("fused") or group.get("capturable"))
        fused.update(dict.fromkeys(names, on_device))
    _make_room(state, optimizer, reader, fused)
    for name, piece in sorted(optimizer_pieces(state), key=itemgetter(0)):
        if name not in reader.shapes:
            raise CheckpointError(f"it has no {name.removeprefix(OPTIMIZER)!r} of the optimizer")
        _take(piece, reader, name)


def _take_rate(group: dict[str, Any], saved: Mapping[str, Any], same_run: bool) -> None:
    """Takes the learning rate of the next batch, scaled if the configured rate has changed. Every
    other option is this run's own.
    """
    now, then = group.get("initial_lr"), saved.get("initial_lr")  # schedulers start from it
    if now is not None and then and now != then:
        group["lr"] = saved["lr"] * now / then
    elif same_run or now is not None:
        group["lr"] = saved["lr"]


def _make_room(state: State, optimizer: Any, reader: Reader, on_device: Mapping[str, bool]) -> None:
    """Creates the tensors that the optimizer would create in its first step."""
    keys: dict[str, list[str]] = defaultdict(list)
    for full in reader.names(OPTIMIZER):
        name, _, key = full.rpartition("/")
        keys[name].append(key)
    partition = partition_of(state.model)
    weights: dict[str, tuple[Tensor, Any]]  # key in optimizer.state, and full shape
    if partition is None:
        weights = {name: (p, p.shape) for name, p in trainable(state.model).items()}
    else:
        flats = partition.flats
        weights = {
            name: (flats[stretch.flat], stretch.shape)
            for name, stretch in partition.stretches.items()
        }
    for name, (weight, shape) in weights.items():
        entry = optimizer.state[weight] if name in keys else {}
        for key in keys[name]:
            if key in entry:
                continue
            full = f"{OPTIMIZER}{name}/{key}"
            if reader.shapes[full] == tuple(shape) and reader.shapes[full]:
                entry[key] = torch.zeros_like(
                    weight, dtype=reader.dtype(full), requires_grad=False
                ).detach()
                continue
            device = weight.device if on_device[name] else "cpu"
            entry[key] = torch.zeros(reader.shapes[full], dtype=reader.dtype(full), device=device)


def _load_states(
    owners: Iterable[Any], saved: Iterable[tuple[str, Any]], what: str, same_run: bool
) -> None:
    """Gives each owner the state saved for its class. Owners of one class take theirs in order."""
    waiting: dict[str, list[Any]] = defaultdict(list)
    for kind, content in saved:
        waiting[kind].append(content)
    for owner in owners:
        contents = waiting.get(type(owner).__qualname__)
        if contents:
            try:
                (owner.go_on if hasattr(owner, "parts") else owner.load_state_dict)(contents.pop(0))
            except UserError as error:
                raise CheckpointError(str(error)) from None
    for kind in (kind for kind, left in waiting.items() if left and kind not in _ENGINES):
        if same_run:
            raise CheckpointError(f"it holds the {what} {kind}, which this run does not have")
        if what == "algorithm":
            _log.warning("the checkpoint's %s %s is left behind: this run has none", what, kind)


def _by(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "a number"
