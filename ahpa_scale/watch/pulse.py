# SPDX-License-Identifier: Apache-2.0
"""The main thread's progress. Only the main thread writes it; other threads read it."""

from __future__ import annotations

import time


class Pulse:
    """Counters, a clock and an event name. Marking an event costs well under a microsecond.

    Attributes:
        batch: batches trained at the last event.
        count: events passed since the start.
        met: whether the ranks have met. From then on all of them must be there.
        dropped: datagrams that the watch has dropped; the watch's thread writes it.
        marked: monotonic time of the last event, in seconds; before the first event, of the start.
    """

    __slots__ = ("_event", "batch", "count", "dropped", "marked", "met")

    def __init__(self) -> None:
        self.count, self.met, self.dropped = 0, False, 0
        self.marked = time.monotonic()
        self.batch, self._event = 0, ""

    def mark(self, event: str, batch: int) -> None:
        """Notes that the main thread has passed an event.

        Args:
            event: name of the event.
            batch: batches trained.
        """
        self.batch, self._event = batch, event
        self.marked = time.monotonic()
        self.count += 1

    def saves(self) -> None:
        """Notes that the main thread waits for a running upload."""
        self.mark("waits for the upload of a checkpoint", self.batch)

    @property
    def stage(self) -> str:
        """The last known position of the main thread, such as ``batch 12: before_forward``."""
        return f"batch {self.batch}: {self._event}" if self._event else "its start"
