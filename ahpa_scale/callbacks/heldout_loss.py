# SPDX-License-Identifier: Apache-2.0
"""Held-out loss of the averaged weights while training, by the code of `ahpa-scale evaluate`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, cast

from composer.core import Callback, Event, State, TimeUnit
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor

from ahpa_scale.algorithms.timing import Every
from ahpa_scale.callbacks.averages import AskedToLeaveError, averages_lent
from ahpa_scale.callbacks.common import unwrap
from ahpa_scale.checkpoint.best import Best, Contest
from ahpa_scale.evaluation.heldout import Generator, heldout_flow
from ahpa_scale.precision import evaluation_autocast
from ahpa_scale.preemption import Requests

#: Name in the logs; each bin's has its number appended.
MEASURE = "heldout/flow"


class HeldOutLoss(Callback):
    """Measures at an interval and at the end of training.

    The value is that of `ahpa-scale evaluate` on the checkpoint of the same batch: the same
    samples, noise and bins, and the averaged weights where there are any. The ranks share the
    samples. It is logged, and offered as the checkpoint's merit.

    Args:
        interval: time string between measurements.
        batches: this rank's share of the samples, see `heldout_flow`; read once per measurement.
        facts: what identifies the samples, ready for JSON.
        contest: finds the best checkpoint.
        requests: no measurement is started or finished once the run is asked to leave.
        bins: equal parts of t.
    """

    def __init__(
        self,
        interval: str,
        batches: Iterable[Mapping[str, Tensor]],
        facts: Mapping[str, Any],
        *,
        contest: Contest | None = None,
        requests: Requests | None = None,
        bins: int = 10,
    ) -> None:
        self.due = Every(interval, "evaluation.interval")
        self.batches, self.bins = batches, bins
        self.contest, self.requests = contest or Contest(), requests or Requests()
        told = json.dumps({**facts, "bins": bins}, sort_keys=True)
        self._settings = hashlib.sha256(told.encode()).hexdigest()[:16]
        self._last = -1

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        """Measures when it is time, once per batch number and before its checkpoint is saved."""
        batch = state.timestamp.batch.value
        if not (self.due(event, state) or _is_over(event, state)) or batch == self._last:
            return
        self._last = batch
        try:
            measured = self.measure(state)
        except AskedToLeaveError:
            return
        bins = {f"{MEASURE}/{place}": value for place, value in enumerate(measured["flow_t"])}
        logger.log_metrics({MEASURE: measured["flow"], **bins})
        self.contest.offer(Best(batch, measured["flow"], MEASURE, self._settings))

    def measure(self, state: State) -> dict[str, Any]:
        """``flow`` and ``flow_t``, see `heldout_flow`; every rank must call it.

        Raises:
            AskedToLeaveError: any rank is asked to leave meanwhile, or was before.
        """
        with averages_lent(state, self.requests) as backbone:
            device = next(backbone.parameters()).device
            generator = cast(Generator, unwrap(state.model))
            with evaluation_autocast(device):
                return heldout_flow(generator, self.batches, self.bins, add_up=_add_up)


def _add_up(tensor: Tensor) -> None:
    dist.all_reduce(tensor, reduce_operation="SUM")


def _is_over(event: Event, state: State) -> bool:
    """Whether training ends with this batch. FIT_END would be too late: its checkpoint is saved."""
    if event != Event.BATCH_END or state.max_duration is None:
        return False
    if state.max_duration.unit != TimeUnit.EPOCH:
        return bool(state.timestamp >= state.max_duration)
    # The epoch is counted only after its last batch's checkpoint.
    ends = state.timestamp.batch_in_epoch.value == state.dataloader_len
    return ends and state.timestamp.epoch.value + 1 >= state.max_duration.value
