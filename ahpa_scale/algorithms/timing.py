# SPDX-License-Identifier: Apache-2.0
"""Composer time strings for plug-ins: parsed and checked once, then asked "has it come round?"."""

from __future__ import annotations

import re
from collections.abc import Sequence

from composer.core import Event, State, Time, TimeUnit

from ahpa_scale.errors import UserError

_TIME = re.compile(r"\d+(ba|ep|sp)", re.ASCII)
UNIT_NAMES = {"ba": "batches", "ep": "epochs", "sp": "samples"}


def parse_time(text: str, name: str, units: Sequence[str] = ("ba", "ep", "sp")) -> Time[int]:
    """Read a positive time string such as ``'1000ba'``.

    Args:
        text: a number and a unit.
        name: the option the string belongs to; named in the error.
        units: the units that option may use.

    Raises:
        UserError: not a time string, not positive, or in another unit.
    """
    wanted = ", ".join(f"'10{unit}' ({UNIT_NAMES[unit]})" for unit in units)
    problem = f"{name} is {text!r}: give a positive whole number and a unit, such as {wanted}"
    if not isinstance(text, str) or _TIME.fullmatch(text) is None:
        raise UserError(problem)
    time: Time[int] = Time.from_timestring(text)
    if time.unit not in [TimeUnit(unit) for unit in units] or time.value <= 0:
        raise UserError(problem)
    return time


def position(state: State, unit: TimeUnit) -> float:
    """Training time in `unit`, fractional inside an epoch where its length is known."""
    now = float(state.timestamp.get(unit).value)
    if unit == TimeUnit.EPOCH and state.dataloader_len is not None:
        now += state.timestamp.batch_in_epoch.value / int(state.dataloader_len)
    return now


class Every:
    """True at most once per interval of training time, at the end of a batch or an epoch.

    An interval counts as passed when a multiple of it lies in (time before the batch, time after
    the batch], so the answer depends on nothing but the clock and is the same after a resume.

    Args:
        text: the interval, a time string in batches, epochs or samples.
        name: the option it comes from; named in errors.
    """

    def __init__(self, text: str, name: str = "interval") -> None:
        self.time = parse_time(text, name)
        epochs = self.time.unit == TimeUnit.EPOCH
        self.event = Event.EPOCH_END if epochs else Event.BATCH_END

    def __call__(self, event: Event, state: State) -> bool:
        if event != self.event or state.previous_timestamp is None:
            return False
        before = state.previous_timestamp.get(self.time.unit).value
        now = state.timestamp.get(self.time.unit).value
        return before // self.time.value != now // self.time.value
