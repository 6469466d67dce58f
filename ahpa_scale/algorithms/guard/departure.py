# SPDX-License-Identifier: Apache-2.0
"""Whether a job is to leave: its time is up, or somebody asked it to."""

from __future__ import annotations

import time

from composer.utils import dist

import ahpa_scale
from ahpa_scale.preemption import Requests


class Departure:
    """What each rank knows of its job's end, and what all of them make of it.

    Args:
        time_limit: seconds from the start of the process; rank 0's clock decides. None: no end.
        requests: what each rank is asked from outside; None: nobody asks.
    """

    def __init__(self, time_limit: float | None, requests: Requests | None) -> None:
        self.time_limit, self.requests = time_limit, requests

    @property
    def possible(self) -> bool:
        """Whether the job may have to leave at all."""
        return self.time_limit is not None or self.requests is not None

    def asked_here(self) -> tuple[bool, bool, bool]:
        """This rank's answers: time is up; asked to leave; asked to save."""
        asked = self.requests
        return self._out_of_time(), bool(asked and asked.leave), bool(asked and asked.save)

    def agree(self, late: bool, leave: bool, save: bool) -> bool:
        """Takes the ranks' common answers; returns whether training ends with this batch."""
        if self.requests is None:
            return late
        self.requests.agree(leave, save)
        return late or leave

    def reason(self, batch: int) -> tuple[str, str]:
        """Why training ends: a text for people, and the name of the event."""
        if self.requests is not None and self.requests.leaving:
            why = self.requests.leave or "another rank"
            return f"asked to leave at batch {batch} by {why}", "leave"
        assert self.time_limit is not None
        text = f"the time limit of {self.time_limit:g} s has passed at batch {batch}"
        return text, "time_limit"

    def _out_of_time(self) -> bool:
        if self.time_limit is None or dist.get_global_rank() != 0:
            return False
        return time.monotonic() > ahpa_scale.STARTED + self.time_limit
