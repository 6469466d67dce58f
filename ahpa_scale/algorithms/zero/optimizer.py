# SPDX-License-Identifier: Apache-2.0
"""The optimizer that Composer steps: its closure runs the micro-batches, then the engine steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ahpa_scale.algorithms.zero.scaling import LossScale


class ZeroStep(torch.optim.Optimizer):
    """An optimizer that shows the groups and state that DeepSpeed updates.

    Gradients are clipped group by group, as `GradClip` does: DeepSpeed's one norm over everything
    would let an alignment head's gradient shorten the backbone's step.

    Args:
        engine: DeepSpeed's engine, configured with the bound that gradients are clipped to.
        stage: 1 to 3.
        scale: what the loss's gradient has been multiplied by, or None.

    Attributes:
        last_norms: gradient norm of each group before clipping, in the last step: scalar tensors;
            not finite where DeepSpeed skipped the step. Empty where it skipped because the loss
            scale was too large: that is how a scale is found, and no fault of the batch.
    """

    def __init__(self, engine: Any, stage: int, scale: LossScale | None = None) -> None:
        # No super().__init__(): the groups belong to the inner optimizer.
        self.engine = engine
        self.scale = scale
        self.last_norms: list[Tensor] = []
        self._groups = _GroupNorms(engine.optimizer, stage)

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The inner optimizer's groups: schedulers write to them."""
        groups: list[dict[str, Any]] = self.engine.optimizer.optimizer.param_groups
        return groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The inner optimizer's state, by flat shard."""
        return self.engine.optimizer.optimizer.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The inner optimizer's defaults."""
        defaults: dict[str, Any] = self.engine.optimizer.optimizer.defaults
        return defaults

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Does nothing: the engine frees gradients after its step and while it reduces them."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Runs the closure with gradients on, then updates the weights."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._groups.begin()
        zero = self.engine.optimizer
        if self.scale is not None:
            zero.loss_scale = self.scale.value  # what DeepSpeed divides by before it clips
        self.engine.step()
        self.last_norms = self._groups.norms()
        if self.scale is not None and self.scale.update(zero.overflow):
            self.last_norms = []
        return loss


class _GroupNorms:
    """Has DeepSpeed clip each optimizer group by its own norm.

    DeepSpeed measures each shard's norm, combines all norms, and scales each shard by the combined
    one. Here the measured norms are noted, and each shard is scaled by its group's norm.
    """

    def __init__(self, zero: Any, stage: int) -> None:
        self._zero = zero
        self._stage = stage
        self._measured: list[Tensor] = []
        self._scale = zero.unscale_and_clip_grads
        for name in ("get_grad_norm_direct", "complete_grad_norm_calculation_for_cpu_offload"):
            setattr(zero, name, self._noting(getattr(zero, name)))
        zero.unscale_and_clip_grads = self._clip

    def begin(self) -> None:
        """Forgets the step before."""
        self._measured = []

    def norms(self) -> list[Tensor]:
        """Norm of each group, infinite where a shard's is not a number."""
        groups = self._group_of_shard()
        if len(self._measured) != len(groups):  # skipped before anything was measured
            return [torch.tensor(float("inf"))] * (max(groups) + 1)
        return [self._norm(group) for group in range(max(groups) + 1)]

    def _noting(self, measure: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*args: Any, **kwargs: Any) -> Any:
            norm = measure(*args, **kwargs)
            self._measured.append(torch.as_tensor(norm, dtype=torch.float32))
            return norm

        return noting

    def _group_of_shard(self) -> list[int]:
        zero = self._zero
        if self._stage < 3:
            return list(range(len(zero.bit16_groups)))
        return [zero.sub_group_to_group_id[shard] for shard in range(len(zero.fp16_groups))]

    def _norm(self, group: int) -> Tensor:
        """In units of the gradient before loss scaling."""
        groups = self._group_of_shard()
        parts = [norm for norm, owner in zip(self._measured, groups, strict=True) if owner == group]
        stacked = torch.stack([part.reshape(()) for part in parts])
        # DeepSpeed writes -1 for a norm that is not a number.
        whole = torch.where((stacked < 0).any(), torch.inf, torch.linalg.vector_norm(stacked))
        return whole / self._zero.loss_scale

    def _clip(self, shard: Any, total_norm: Any) -> None:
        del total_norm
        number = shard if self._stage == 3 else self._shard_of_gradient(shard[0])
        group = self._group_of_shard()[number]
        self._scale(shard, self._norm(group) * self._zero.loss_scale)

    def _shard_of_gradient(self, gradient: Tensor) -> int:
        flats = self._zero.single_partition_of_fp32_groups
        return next(number for number, flat in enumerate(flats) if flat.grad is gradient)
