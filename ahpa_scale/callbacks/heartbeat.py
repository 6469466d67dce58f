# SPDX-License-Identifier: Apache-2.0
"""Marks every event of Composer's loop for the watch over the ranks, and for /healthz."""

from __future__ import annotations

from composer.core import Callback, Event, State
from composer.loggers import Logger

from ahpa_scale.watch import Pulse


class Heartbeat(Callback):
    """Notes each event that the main thread passes: no host sync, no collective.

    Args:
        pulse: what other threads read.
    """

    def __init__(self, pulse: Pulse) -> None:
        self.pulse = pulse

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        """Mark it. The first event comes when all ranks have met."""
        del logger
        self.pulse.met = True
        self.pulse.mark(event.value, state.timestamp.batch.value)
