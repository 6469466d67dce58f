# SPDX-License-Identifier: Apache-2.0
"""How strongly the alignment acts at a moment of training: from its start to its release."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from composer.core import State, Time, TimeUnit

from ahpa_scale.algorithms.timing import position


class Schedule:
    """The share of its weight that the alignment has now.

    Args:
        start: Composer time string from which it acts.
        until: Composer time string at which its release begins (HASTE, arXiv 2505.16792), or None.
        ramp: how long the weight takes to fall from there, as half a cosine; None: at once.
    """

    def __init__(self, start: str, until: str | None, ramp: str | None) -> None:
        self.start = Time.from_timestring(start)
        self.until = None if until is None else Time.from_timestring(until)
        self._ramp = ramp
        # Where the release began and how long it takes, both in one unit; None while it acts.
        self._fall: dict[str, Any] | None = None

    @property
    def releasing(self) -> bool:
        """Whether the release has begun."""
        return self._fall is not None

    def share(self, state: State) -> float:
        """From 0, where it does not act, to 1."""
        if not reached(state, self.start):
            return 0.0
        ended = self.until is not None and reached(state, self.until)
        if ended and not self.releasing:
            self.begin(state, self._ramp, measured=False)
        if self._fall is not None and not (ended or self._fall["measured"]):
            self._fall = None  # resumed with a later `until`
        if self._fall is None:
            return 1.0
        gone = position(state, TimeUnit(self._fall["unit"])) - self._fall["from"]
        if gone >= self._fall["length"]:
            return 0.0
        return 0.5 + 0.5 * math.cos(math.pi * max(0.0, gone / self._fall["length"]))

    def begin(self, state: State, ramp: str | None, measured: bool = True) -> None:
        """Begins the release; a `measured` one is final."""
        length = Time.from_timestring(ramp or "0ba")
        amount, unit = float(length.value), length.unit
        if unit == TimeUnit.DURATION:
            assert state.max_duration is not None
            amount, unit = amount * state.max_duration.value, state.max_duration.unit
        self._fall = {
            "unit": unit.value,
            "from": position(state, unit),
            "length": amount,
            "measured": measured,
        }

    def state(self) -> dict[str, Any] | None:
        """What :meth:`load` goes on from."""
        return self._fall

    def load(self, state: Mapping[str, Any] | None) -> None:
        """Goes on with a checkpoint's release."""
        self._fall = None if state is None else dict(state)


def reached(state: State, moment: Time[Any]) -> bool:
    """Whether training has come to `moment`, in its own unit."""
    if moment.unit == TimeUnit.DURATION:
        elapsed = state.get_elapsed_duration()
        return elapsed is not None and elapsed >= moment
    return bool(state.timestamp >= moment)
