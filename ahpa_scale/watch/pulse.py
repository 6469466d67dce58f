# SPDX-License-Identifier: Apache-2.0
"""How far the main thread has got: written by it alone, read by other threads."""

from __future__ import annotations

import time


class Pulse:
    """Counters, a clock and two words; marking one event costs well under a microsecond.

    Attributes:
        batch: batches that have been trained at the last event.
        count: events passed since the start.
        met: whether the ranks have met, so that all of them must be there.
        dropped: datagrams that the watch has dropped; written by its thread.
        marked: time of the last event on the monotonic clock, in seconds; before the first one,
            that of the start.
    """

    __slots__ = ("_event", "batch", "count", "dropped", "marked", "met")

    def __init__(self) -> None:
        self.count, self.met, self.dropped = 0, False, 0
        self.marked = time.monotonic()
        self.batch, self._event = 0, ""

    def mark(self, event: str, batch: int) -> None:
        """Notes that the main thread has passed an event.

        Args:
            event: its name.
            batch: batches that have been trained.
        """
        self.batch, self._event = batch, event
        self.marked = time.monotonic()
        self.count += 1

    def saves(self) -> None:
        """Notes that the main thread waits for an upload that goes on."""
        self.mark("waits for the upload of a checkpoint", self.batch)

    @property
    def stage(self) -> str:
        """Where the main thread was last, such as ``batch 12: before_forward``."""
        return f"batch {self.batch}: {self._event}" if self._event else "its start"
