# SPDX-License-Identifier: Apache-2.0
"""The newest numbers of a run. Only the main thread writes them; the server's threads read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class Saved(NamedTuple):
    """A finished checkpoint: batches trained, and time in seconds since 1970."""

    batch: int
    at: float


class Newest(NamedTuple):
    """Numbers of the newest batch; None means not known.

    The tuple is replaced as a whole, so a reader never sees numbers of two batches.

    Attributes:
        batch, images: trained so far by the whole run.
        planned_batches: number of batches at which training stops.
        losses: newest value of each ``loss/train/`` metric, by part.
        learning_rate: learning rate of the batch.
        gradient_norm: gradient norm of the backbone before clipping, as last logged.
        images_per_second: rate of all ranks together.
        mfu: model FLOPs as a share of the devices' peak, 0 to 1.
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
    """All numbers known so far; None means not known.

    Attributes:
        info: texts about the run, by name.
        started_at: when training started in this process, in seconds since 1970.
        newest: numbers of the newest batch.
        nonfinite_batches: nonfinite batches that the guard found in this process.
        wait: seconds that the loop has waited for data, and the start of the current wait in
            monotonic seconds (None: no wait). One pair, so that readers see both change together.
        begun, ended: begin and end of the loop, in monotonic seconds.
        saved: returns the newest checkpoint; None if there is none.
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
        """Seconds that the loop has waited for data, including a current wait.

        Args:
            now: monotonic seconds.
        """
        waited, since = self.wait
        return waited if since is None else waited + max(now - since, 0.0)

    def loop_time(self, now: float) -> float:
        """Seconds from the begin of the loop until now, or until its end.

        Args:
            now: monotonic seconds.
        """
        return 0.0 if self.begun is None else (self.ended or now) - self.begun
