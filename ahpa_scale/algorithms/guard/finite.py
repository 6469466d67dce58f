# SPDX-License-Identifier: Apache-2.0
"""Checks on the device whether everything is finite, without a host sync."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from composer.core import Precision, State
from torch import Tensor

from ahpa_scale.algorithms.grad_clip import GradClip, gradient_norms, parameter_groups


@torch.no_grad()
def nonfinite_flag(numbers: Iterable[Tensor]) -> Tensor:
    """1.0 if any of the scalars is infinite or not a number, else 0.0: a float32 scalar on their
    device. No host sync.
    """
    stacked_N = torch.stack([number.detach().float().reshape(()) for number in numbers])
    return stacked_N.isfinite().all().logical_not().float()


def keeps_own_gradients(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer measures its gradients and skips bad steps by itself, as ZeRO does.

    Such an optimizer has ``last_norms``: the norms of its last step, scalar tensors or numbers, the
    same on every rank; not finite where the step was skipped.
    """
    return hasattr(optimizer, "last_norms")


def scales_loss(state: State) -> bool:
    """Whether Composer scales the loss. Its scaler then skips steps by itself, and overflows now
    and then to find the scale.
    """
    return bool(state.precision == Precision.AMP_FP16)


def batch_norms(state: State) -> dict[str, Tensor]:
    """This batch's gradient norms by parameter group, from `GradClip` or else measured here; empty
    where Composer's scaler or the optimizer checks the gradients.
    """
    if scales_loss(state) or any(keeps_own_gradients(optimizer) for optimizer in state.optimizers):
        return {}
    for algorithm in state.algorithms:
        if isinstance(algorithm, GradClip):
            norms = algorithm.norms(state)
            if norms is not None:
                return dict(norms)
    return gradient_norms(parameter_groups(state.model))


def hold_step(state: State, flag: Tensor) -> None:
    """Keeps the coming optimizer steps from changing anything if the flag is 1.

    Fused Adam and AdamW read a flag on the device themselves (``found_inf``, torch's protocol of
    its gradient scaler); for any other optimizer the host reads it once and takes the gradients
    away.

    Args:
        state: within ``Event.AFTER_TRAIN_BATCH``.
        flag: float32 scalar, the same on every rank.
    """
    if scales_loss(state):
        return
    for optimizer in state.optimizers:
        if keeps_own_gradients(optimizer):
            continue
        # Not torch's fused SGD, which takes the flag too: a skipped first step spoils its momentum.
        if isinstance(optimizer, torch.optim.Adam) and _is_fused(optimizer):
            optimizer.found_inf = flag  # type: ignore[attr-defined]
        elif bool(flag):
            optimizer.zero_grad(set_to_none=True)


def let_step(state: State) -> None:
    """Removes the flag from the optimizers."""
    for optimizer in state.optimizers:
        if "found_inf" in vars(optimizer):
            del optimizer.found_inf


def own_norms(state: State) -> dict[str, Tensor | float]:
    """The norms that optimizers with gradients of their own found in their last step."""
    kept = (optimizer for optimizer in state.optimizers if keeps_own_gradients(optimizer))
    return {f"group {n}": norm for optimizer in kept for n, norm in enumerate(optimizer.last_norms)}


def on_host(norms: Mapping[str, Tensor | float]) -> dict[str, float | None]:
    """Norms for a record, None where not finite; waits for the device."""
    return {name: finite_or_none(norm) for name, norm in norms.items()}


def finite_or_none(value: Any) -> float | None:
    """A number that JSON can hold."""
    number = float(value)
    return number if math.isfinite(number) else None


def _is_fused(optimizer: torch.optim.Optimizer) -> bool:
    return all(group.get("fused") for group in optimizer.param_groups)
