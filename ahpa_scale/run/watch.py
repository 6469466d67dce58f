# SPDX-License-Identifier: Apache-2.0
"""The watch section and the launcher's variables -> the watch over this run's ranks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from ahpa_scale.config.schema import Config
from ahpa_scale.run.meeting import open_meeting
from ahpa_scale.watch import Place, Pulse, place_from, watching


@contextmanager
def watch_ranks(config: Config) -> Iterator[Pulse | None]:
    """Meets the other ranks and watches them while the body runs. Yields None for a single rank, or
    if the watch is off.

    Raises:
        PortError: on rank 0, if one of its ports can't be opened.
        UnreachableError: rank 0 is not there in time, or this rank's place is taken.
        HostError: this rank's secret is not that of rank 0.
    """
    place = place_from(os.environ, config.watch.port)
    if place is None:
        yield None
        return
    with open_meeting(place) as meeting:
        if place.rank != 0:
            meeting.join()
        with _watch(config, place, meeting.key) as pulse:
            if place.rank == 0:
                # Joins after its watch runs, which must answer other jobs that ask for the port.
                meeting.join()
            yield pulse


def _watch(config: Config, place: Place, key: bytes) -> AbstractContextManager[Pulse | None]:
    chosen = config.watch
    if not chosen.enabled:
        return nullcontext()
    return watching(place, key, silence=chosen.silence, hang=chosen.hang)
