# SPDX-License-Identifier: Apache-2.0
"""What measurements of the averaged weights while training have in common."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from composer.core import Callback, Event, State, TimeUnit
from composer.loggers import Logger

from ahpa_scale.algorithms.timing import Every
from ahpa_scale.callbacks.averages import AskedToLeaveError
from ahpa_scale.checkpoint.best import Best, Contest
from ahpa_scale.preemption import Requests


class Measuring(Callback):
    """Measures at an interval and at the end of training, and logs what it finds.

    Args:
        interval: time string between measurements.
        facts: what the values depend on besides the weights, ready for JSON.
        contest: finds the best checkpoint by the first value; None: it goes by something else.
        requests: no measurement is started or finished once the run is asked to leave.
    """

    def __init__(
        self,
        interval: str,
        facts: Mapping[str, Any],
        *,
        contest: Contest | None = None,
        requests: Requests | None = None,
    ) -> None:
        self.due = Every(interval, "evaluation.interval")
        self.contest, self.requests = contest, requests or Requests()
        told = json.dumps(facts, sort_keys=True)
        self._settings = hashlib.sha256(told.encode()).hexdigest()[:16]
        self._last = -1

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        """Measures when it is time, once per batch number and before its checkpoint is saved."""
        batch = state.timestamp.batch.value
        if not (self.due(event, state) or _is_over(event, state)) or batch == self._last:
            return
        self._last = batch
        try:
            values = self.measure(state)
        except AskedToLeaveError:
            return
        logger.log_metrics(values)
        if self.contest is not None:
            name, value = next(iter(values.items()))
            self.contest.offer(Best(batch, value, name, self._settings))

    @abstractmethod
    def measure(self, state: State) -> dict[str, float]:
        """The values by their names in the logs; lower ones are better. Every rank must call it.

        Raises:
            AskedToLeaveError: any rank is asked to leave meanwhile, or was before.
        """


def _is_over(event: Event, state: State) -> bool:
    """Whether training ends with this batch. FIT_END would be too late: its checkpoint is saved."""
    if event != Event.BATCH_END or state.max_duration is None:
        return False
    if state.max_duration.unit != TimeUnit.EPOCH:
        return bool(state.timestamp >= state.max_duration)
    # The epoch is counted only after its last batch's checkpoint.
    ends = state.timestamp.batch_in_epoch.value == state.dataloader_len
    return ends and state.timestamp.epoch.value + 1 >= state.max_duration.value
