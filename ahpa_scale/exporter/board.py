# SPDX-License-Identifier: Apache-2.0
"""The newest numbers of a run: written by the main thread alone, read by the server's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class Saved(NamedTuple):
    """A checkpoint that is in its place: batches trained, and seconds since 1970."""

    batch: int
    at: float


class Newest(NamedTuple):
    """What the newest batch left; None is what isn't known.

    One value, replaced as a whole: a reader never sees numbers of two batches side by side.

    Attributes:
        batch, images: trained so far, by the whole run.
        planned_batches: batches at which training stops.
        losses: newest value of each ``loss/train/`` by its part.
        learning_rate: of the batch.
        gradient_norm: of the backbone before clipping, as last logged.
        images_per_second: of all ranks together.
        mfu: share of the devices' peak, 0 to 1.
    """

    batch: int | None = None
    images: int | None = None
    planned_batches: int | None = None
    losses: Mapping[str, float] = {}
    learning_rate: float | None = None
    gradient_norm: float | None = None
    images_per_second: float | None = None
    mfu: float | None = None


@dataclass
class Board:
    """What is known so far; None is what isn't.

    Attributes:
        info: words about the run, by name.
        started_at: when training started in this process, in seconds since 1970.
        newest: what the newest batch left.
        nonfinite_batches: that the guard has found in this process.
        wait: seconds that the loop has waited for data, and since when it waits now, in monotonic
            seconds (None: it doesn't): one pair, so that readers never see half of a change.
        begun, ended: of the loop, in monotonic seconds.
        saved: the newest checkpoint; None while there is none.
        logged: newest value of everything else that was logged.
    """

    info: Mapping[str, str] = field(default_factory=dict)
    started_at: float | None = None
    newest: Newest = field(default_factory=Newest)
    nonfinite_batches: int = 0
    wait: tuple[float, float | None] = (0.0, None)
    begun: float | None = None
    ended: float | None = None
    saved: Callable[[], Saved | None] = lambda: None
    logged: dict[str, float] = field(default_factory=dict)

    def data_wait(self, now: float) -> float:
        """Seconds that the loop has waited for data, a wait that goes on included.

        Args:
            now: monotonic seconds.
        """
        waited, since = self.wait
        return waited if since is None else waited + max(now - since, 0.0)

    def loop_time(self, now: float) -> float:
        """Seconds since the loop began, up to its end.

        Args:
            now: monotonic seconds.
        """
        return 0.0 if self.begun is None else (self.ended or now) - self.begun
