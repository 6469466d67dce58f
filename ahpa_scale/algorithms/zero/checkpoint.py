# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a ZeRO run: whole tensors by name, as an unsharded run writes and reads them.

Composer 0.32.1 asks its State for both state dicts and does not know ZeRO. So the four methods that
it calls are replaced, on the State of this run only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from composer.core import State
from composer.utils import dist
from torch import Tensor, nn

from ahpa_scale.algorithms.zero.front import ZeroFront
from ahpa_scale.algorithms.zero.optimizer import ZeroStep
from ahpa_scale.algorithms.zero.partition import Partition
from ahpa_scale.errors import UserError


def save_as_whole(state: State, partition: Partition) -> None:
    """Makes `state` read and write whole tensors; on saving, only rank 0 holds them.

    Every rank must save and load together.
    """
    (optimizer,) = state.optimizers
    assert isinstance(optimizer, ZeroStep)
    front = state.model
    assert isinstance(front, ZeroFront)
    kind = type(optimizer.engine.optimizer.optimizer).__qualname__

    def load_model(state_dict: dict[str, Any], *_: Any, strict: bool = True, **__: Any) -> None:
        load_weights(front.module, partition, state_dict["model"], strict)

    def load_optimizer(state_dict: dict[str, Any], strict: bool = True) -> None:
        del strict
        load_moments(optimizer, partition, (state_dict["optimizers"] or {}).get(kind))

    replaced: Any = state
    replaced.get_model_state_dict = lambda: weights(front.module, partition)
    replaced.get_optim_state_dict = lambda: {kind: moments(optimizer, partition)}
    replaced.load_model_state = load_model
    replaced.load_optim_state = load_optimizer


def weights(model: nn.Module, partition: Partition) -> dict[str, Any]:
    """The whole float32 weights and the buffers, on the CPU of rank 0; empty elsewhere."""
    masters = partition.masters()
    kept = dist.get_global_rank() == 0
    found: dict[str, Any] = {}
    for name, value in _entries(model):
        if name in masters:
            value = partition.whole(name, masters[name])
        elif hasattr(value, "ds_id"):  # frozen, and sharded by stage 3
            value = _gathered(value)
        if kept:
            found[name] = value.detach().cpu() if isinstance(value, Tensor) else value
    return found


def load_weights(
    model: nn.Module, partition: Partition, saved: Mapping[str, Any], strict: bool
) -> None:
    """Copies whole weights into the shards.

    Raises:
        UserError: names that don't fit, if `strict`.
    """
    masters = partition.masters()
    entries = dict(_entries(model))
    if strict:
        _same_names(set(entries), set(saved))
    with torch.no_grad():
        for name, value in entries.items():
            if name not in saved:
                continue
            if name in masters:
                masters[name].copy_(partition.part(name, saved[name]))
            elif isinstance(value, Tensor) and not hasattr(value, "ds_id"):
                value.copy_(saved[name])
            elif hasattr(value, "ds_id"):
                _scatter(value, saved[name])
    partition.publish()


def moments(optimizer: ZeroStep, partition: Partition) -> dict[str, Any]:
    """The optimizer's state as torch's ``get_optimizer_state_dict`` gives it, by parameter name."""
    kept = dist.get_global_rank() == 0
    state: dict[str, dict[str, Any]] = {}
    flats, held = partition.flats, optimizer.state
    for name, one in partition.stretches.items():
        entry = {
            key: _whole_value(partition, name, flats[one.flat], value)
            for key, value in held.get(flats[one.flat], {}).items()
        }
        if kept and entry:
            state[name] = entry
    if not kept:
        return {}
    names = [[] for _ in optimizer.param_groups]  # type: list[list[str]]
    for name, one in partition.stretches.items():
        names[partition.group(one.flat)].append(name)
    groups = [
        {**{k: v for k, v in group.items() if k != "params"}, "params": names[number]}
        for number, group in enumerate(optimizer.param_groups)
    ]
    return {"state": state, "param_groups": groups}


def load_moments(
    optimizer: ZeroStep, partition: Partition, saved: Mapping[str, Any] | None
) -> None:
    """Copies an optimizer's whole state into the shards.

    Raises:
        UserError: the checkpoint has no state for one of the parameters.
    """
    if saved is None:
        raise UserError("the checkpoint holds no state of this optimizer")
    for group, old in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        group.update({key: value for key, value in old.items() if key != "params"})
    if not saved["state"]:
        return
    flats = partition.flats
    for name, one in partition.stretches.items():
        if name not in saved["state"]:
            raise UserError(f"the checkpoint's optimizer has no state for {name!r}")
        flat = flats[one.flat]
        entry = optimizer.state[flat]
        for key, value in saved["state"][name].items():
            if not _by_element(value, one.shape):
                entry[key] = value.clone() if isinstance(value, Tensor) else value
                continue
            if key not in entry:
                entry[key] = torch.zeros_like(flat, dtype=value.dtype, requires_grad=False)
            partition.cut(name, entry[key]).copy_(partition.part(name, value))


def _whole_value(partition: Partition, name: str, flat: Tensor, value: Any) -> Any:
    if isinstance(value, Tensor) and value.shape == flat.shape:
        return partition.whole(name, partition.cut(name, value)).cpu()
    # A copy: otherwise the parameters of one shard share one step count, and an optimizer that
    # loads them counts it up once for each.
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value


def _by_element(value: Any, shape: torch.Size) -> bool:
    return isinstance(value, Tensor) and value.shape == shape and value.dim() > 0


def _entries(model: nn.Module) -> list[tuple[str, Any]]:
    """What the model's state dict holds, without copying or gathering."""
    return list(model.state_dict(keep_vars=True).items())


def _gathered(parameter: Any) -> Tensor:
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        value: Tensor = parameter.detach().clone()
    return value


def _scatter(parameter: Any, value: Tensor) -> None:
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        parameter.copy_(value)


def _same_names(here: set[str], there: set[str]) -> None:
    for name in sorted(here ^ there):
        side = "lacks" if name in here else "has an unexpected"
        raise UserError(f"the checkpoint {side} {name!r}: it belongs to another model")
