# SPDX-License-Identifier: Apache-2.0
"""The learning rate over the run, as a factor of `optimizer.lr`."""

from __future__ import annotations

from composer.core import State, Time, TimeUnit
from composer.optim import (
    ComposerScheduler,
    ConstantScheduler,
    CosineAnnealingScheduler,
    LinearScheduler,
)

from ahpa_scale.algorithms.timing import position
from ahpa_scale.config.schema import Config


def build_schedule(config: Config) -> ComposerScheduler:
    """Builds the schedule. It depends on the clock alone, so a resumed run goes on with it."""
    chosen = config.optimizer
    shapes: dict[str, ComposerScheduler] = {
        "constant": ConstantScheduler(),
        "cosine": CosineAnnealingScheduler(alpha_f=chosen.final),
        "linear": LinearScheduler(alpha_f=chosen.final),
        "wsd": StableDecay(chosen.decay, chosen.final),
    }
    return Warmup(chosen.warmup, shapes[chosen.schedule])


class Warmup(ComposerScheduler):
    """A linear rise from 0, multiplied with another schedule.

    Composer's own schedules with a warm-up refuse one in another unit than the run's length.

    Args:
        length: time string of the rise, also in ``dur``.
        then: the other schedule.
    """

    def __init__(self, length: str, then: ComposerScheduler) -> None:
        self.length, self.then = Time.from_timestring(length), then

    def __call__(self, state: State, ssr: float = 1.0) -> float:
        """The factor now; `ssr` is Composer's and stays 1."""
        return _risen(state, self.length) * self.then(state, ssr)


class StableDecay(ComposerScheduler):
    """Constant, then a linear fall over the last part of the run: with a warm-up, WSD (MiniCPM,
    arXiv 2404.06395, section 4).

    Args:
        decay: share of the run that the fall takes, above 0.
        final: the factor at the end.
    """

    def __init__(self, decay: float, final: float) -> None:
        self.decay, self.final = decay, final

    def __call__(self, state: State, ssr: float = 1.0) -> float:
        """The factor now; `ssr` is Composer's and stays 1."""
        assert state.max_duration is not None
        done = position(state, state.max_duration.unit) / state.max_duration.value
        fallen = min(1.0, max(0.0, (done - (1.0 - self.decay)) / self.decay))
        return 1.0 - (1.0 - self.final) * fallen


def _risen(state: State, length: Time[float]) -> float:
    """The share of a time from the start that has passed, at most 1."""
    unit, amount = length.unit, float(length.value)
    if unit == TimeUnit.DURATION:
        assert state.max_duration is not None
        unit, amount = state.max_duration.unit, amount * state.max_duration.value
    return 1.0 if amount == 0 else min(1.0, position(state, unit) / amount)
