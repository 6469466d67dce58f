# SPDX-License-Identifier: Apache-2.0
"""How fast a run trains, over its last batches."""

from __future__ import annotations

import time
from collections import deque

from composer.core import State


class Speed:
    """Speed of the last 50 batches, evaluations, saving and sampling included."""

    def __init__(self) -> None:
        self._recent: deque[tuple[float, int, int]] = deque(maxlen=51)  # time, batches, images

    def start(self, state: State) -> None:
        """Starts again at the start of training."""
        self._recent.clear()
        self.note(state)

    def note(self, state: State) -> None:
        """Takes in the end of a batch."""
        now = state.timestamp
        self._recent.append((time.monotonic(), now.batch.value, now.sample.value))

    @property
    def images_per_second(self) -> float | None:
        """Of all ranks together; None before the first batch has ended."""
        seconds, _, images = self._passed()
        return images / seconds if images > 0 < seconds else None

    def seconds_for(self, batches: int) -> float | None:
        """Time that `batches` would take; None before the first batch has ended."""
        seconds, passed, _ = self._passed()
        return batches * seconds / passed if passed > 0 < seconds else None

    def _passed(self) -> tuple[float, int, int]:
        """Seconds, batches and images of the last batches; zeros before `start`."""
        if not self._recent:
            return 0.0, 0, 0
        (begun, *first), (ended, *last) = self._recent[0], self._recent[-1]
        return ended - begun, last[0] - first[0], last[1] - first[1]
