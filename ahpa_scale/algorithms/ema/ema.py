# SPDX-License-Identifier: Apache-2.0
"""Exponential moving average of the weights, whole or sharded like them.

`update_ema` is the formula; `EMA` decides when to use it, and lends the average to the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from composer.core import Algorithm, Event, State, TimeUnit
from composer.loggers import Logger
from torch import Tensor, nn

from ahpa_scale.algorithms.composer_options import checkpoint_error, refuse_save_folder
from ahpa_scale.algorithms.ema.parameters import (
    Shards,
    local_part,
    reshard,
    shards_of,
    tracked_parameters,
)
from ahpa_scale.algorithms.timing import Every, parse_time
from ahpa_scale.errors import UserError
from ahpa_scale.models.backbone import BACKBONE

_AVERAGES = "EMA's averages"
_EVALUATION = (
    "Composer's evaluation would judge the weights and not EMA's averages: leave eval_dataloader "
    "out, and call trainer.eval(...) inside ema.applied(model), or run ahpa-scale evaluate on the "
    "checkpoints"
)


@torch.no_grad()
def update_ema(shadow: Sequence[Tensor], params: Sequence[Tensor], decay: float) -> None:
    """Move ``shadow`` towards ``params``: shadow <- decay * shadow + (1 - decay) * params.

    Iterate averaging (Polyak and Juditsky, 1992, "Acceleration of stochastic approximation by
    averaging") in its exponential form. In place and without communication: shard by shard.

    Args:
        shadow: averages, float32; same shapes and sharding as ``params``.
        params: current values, any floating dtype.
        decay: share of the old average that stays, in [0, 1].
    """
    averages = [local_part(tensor) for tensor in shadow]
    values = [local_part(tensor).to(torch.float32) for tensor in params]
    torch._foreach_lerp_(averages, values, 1.0 - decay)


def _check_names(model_names: Mapping[str, Any], ema_names: Mapping[str, Any]) -> None:
    missing = next((name for name in model_names if name not in ema_names), None)
    if missing is not None:
        raise UserError(f"EMA has no average of {missing!r}: it belongs to another model")
    extra = next((name for name in ema_names if name not in model_names), None)
    if extra is not None:
        raise UserError(f"EMA has an unexpected average of {extra!r}: it belongs to another model")


class EMA(Algorithm):
    """Keep a moving average of the backbone, to evaluate and sample with.

    `ahpa_scale.checkpoint` saves the averages, and :meth:`applied` lends them to the model.
    Composer does neither, so its own checkpoints and evaluations are refused.

    Args:
        decay: share of the old average kept per update, in [0, 1); None is 0.9999, unless
            ``half_life`` is given.
        half_life: in place of ``decay``, the time string (samples, batches or epochs) after which a
            value's weight has halved. In samples it means the same for any batch size.
        update_interval: time string between updates.
        exclude: prefixes of parameter names that are not averaged.

    Raises:
        UserError: decay or a time string out of range, or both decay and half life; once a Trainer
            has the algorithm: its ``save_folder``, or its ``eval_dataloader``.
    """

    def __init__(
        self,
        decay: float | None = None,
        half_life: str | None = None,
        update_interval: str = "1ba",
        exclude: Sequence[str] = ("attachments.",),
    ) -> None:
        if decay is not None and half_life is not None:
            raise UserError("EMA has both decay and half_life: give one of them")
        self.decay = 0.9999 if decay is None else decay
        if not 0.0 <= self.decay < 1.0:
            raise UserError(f"EMA decay is {decay}: give a number in [0, 1), such as 0.9999")
        self.half_life = None if half_life is None else parse_time(half_life, "half_life")
        self.update_due = Every(update_interval, "update_interval")
        self.exclude = tuple(exclude)
        self.shadow: dict[str, Tensor] = {}
        self.updates = 0
        self._clock: float | None = None  # time of the last update, in the half life's unit
        self._loaded = False  # the averages came from a checkpoint: weights must not replace them
        self._lent: tuple[list[Tensor], list[Tensor]] | None = None  # weights and their copies
        self._shards: Shards | None = None  # where ZeRO keeps the weights

    @property
    def active(self) -> bool:
        """Whether the model holds the averages now, and so must not be trained or saved."""
        return self._lent is not None

    def match(self, event: Event, state: State) -> bool:
        if event == Event.EVAL_START:
            return not self.active
        return event in (Event.BEFORE_LOAD, Event.FIT_START) or self.update_due(event, state)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        del logger
        if event == Event.EVAL_START or (event == Event.FIT_START and state.evaluators):
            raise UserError(_EVALUATION)
        if event == Event.BEFORE_LOAD:
            refuse_save_folder(state, _AVERAGES)
            # After wrapping, so that the averages are sharded as the parameters are; before
            # loading, so that a sharded checkpoint finds tensors to load into.
            self._bind(state.model)
        elif event == Event.FIT_START:
            self._bind(state.model)
            self._clock = self._now(state) if self._clock is None else self._clock
        else:
            self._update(state)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model holds the averages inside this context and its own weights, exactly, after it.

        Nests. Takes memory for one more copy of the weights. Under FSDP2 every rank must enter.

        Raises:
            UserError: the model has other parameters than the averages.
        """
        if self.active:
            yield
            return
        self._lend(model)
        try:
            yield
        finally:
            self._take_back(model)

    def averages(self) -> dict[str, Tensor]:
        """The current averages by the backbone's own parameter names: live tensors, which training
        still changes. Do not write to them.

        Raises:
            UserError: there are none yet (before training starts), or none of the backbone.
        """
        averages = {
            name.removeprefix(BACKBONE): average
            for name, average in self.shadow.items()
            if name.startswith(BACKBONE)
        }
        if not averages:
            raise UserError(
                "EMA has no averages of the backbone yet; they exist from fit's start on"
            )
        return averages

    def parts(self) -> Mapping[str, Tensor]:
        """The live averages by plain parameter name as they lie on this rank: whole, rows of
        DTensors, or ZeRO's stretches. Call :meth:`go_on` after writing to them.
        """
        return self.shadow

    def progress(self) -> dict[str, Any]:
        """The state without the averages: numbers and strings."""
        return {"updates": self.updates, "clock": self._clock, "clock_unit": self._unit}

    def go_on(self, progress: Mapping[str, Any]) -> None:
        """Restores what `progress` gave, once the averages are in :meth:`parts`."""
        self.updates = int(progress["updates"])
        self._clock = progress["clock"] if progress["clock_unit"] == self._unit else None
        self._loaded = True

    def state_dict(self) -> dict[str, Any]:
        """Composer calls it for its own checkpoints, which would lose the averages."""
        raise checkpoint_error(_AVERAGES)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Composer calls it for its own checkpoints."""
        raise checkpoint_error(_AVERAGES)

    @property
    def _unit(self) -> str:
        return "ba" if self.half_life is None else str(self.half_life.unit.value)

    def _bind(self, model: nn.Module) -> None:
        """Starts every average at its parameter, on the same device with the same sharding.
        Averages that were loaded or updated stay.
        """
        params = tracked_parameters(model, self.exclude)
        self._shards = shards_of(model)
        if self._loaded or self.updates > 0:
            _check_names(params, self.shadow)
            return
        self.shadow = {n: p.detach().clone().to(torch.float32) for n, p in params.items()}

    def _update(self, state: State) -> None:
        params = tracked_parameters(state.model, self.exclude)
        now = self._now(state)
        update_ema([self.shadow[name] for name in params], list(params.values()), self._keep(now))
        self.updates += 1
        self._clock = now

    def _keep(self, now: float) -> float:
        """The decay of this update: fixed, or by the time since the last one."""
        if self.half_life is None:
            return self.decay
        assert self._clock is not None, "set at the start of training"
        return float(0.5 ** ((now - self._clock) / self.half_life.value))

    def _now(self, state: State) -> float:
        """Training time in the half life's unit, fractional inside an epoch."""
        if self._unit != TimeUnit.EPOCH.value:
            return float(state.timestamp.get(self._unit).value)
        if state.dataloader_len is None:
            raise UserError("half_life is in epochs, whose length is unknown: give it in samples")
        return state.timestamp.batch.value / int(state.dataloader_len)

    @torch.no_grad()
    def _lend(self, model: nn.Module) -> None:
        if self.updates == 0 or not self.shadow:
            self._bind(model)
        params = tracked_parameters(model, self.exclude)
        _check_names(params, self.shadow)
        weights = [local_part(parameter) for parameter in params.values()]
        copies = [weight.clone() for weight in weights]
        self._lent = (weights, copies)
        torch._foreach_copy_(weights, [local_part(self.shadow[name]) for name in params])
        if self._shards is not None:
            self._shards.publish()

    @torch.no_grad()
    def _take_back(self, model: nn.Module) -> None:
        if self._lent is None:
            return
        reshard(model)
        weights, copies = self._lent
        torch._foreach_copy_(weights, copies)
        self._lent = None
        if self._shards is not None:
            self._shards.publish()
