# SPDX-License-Identifier: Apache-2.0
"""The places that a run reads and writes: their rights, and their clock against this host's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress

from ahpa_scale import storage, writable
from ahpa_scale.commands.doctor.finding import Finding, note, ok, wrong
from ahpa_scale.config.checks.data import read_data_card
from ahpa_scale.config.checks.folders import written_places
from ahpa_scale.config.schema import Config
from ahpa_scale.disk_errors import mendable
from ahpa_scale.errors import UserError
from ahpa_scale.unreachable import UnreachableError

#: Seconds between two clocks. Object stores refuse requests that are 15 minutes off.
_APART, _TOO_FAR = 60, 900


def findings(config: Config) -> Iterator[Finding]:
    """Reads the data set's card, and writes to each place that the run will write to."""
    try:
        card = read_data_card(config)
    except (UserError, OSError) as error:
        yield _refused("data", error)
    else:
        place = ", ".join(config.data.places)
        yield ok("data", f"{place}: {card.num_samples} samples")
    for key, place in written_places(config):
        yield from _try(key, place)


def _try(key: str, place: str) -> Iterator[Finding]:
    ahead: list[float] = []
    begun = time.time()

    def look(trial: str) -> None:
        with suppress(NotImplementedError):
            ahead.append(_ahead(begun, storage.modified(trial), time.time()))

    try:
        writable.try_to_write(place, look)
    except (UserError, OSError) as error:
        yield _refused(key, error)
        return
    yield ok(key, f"{place} takes writes")
    for seconds in ahead:
        yield clock(seconds, place)


def _ahead(begun: float, written: float, ended: float) -> float:
    """Seconds by which this host's clock is ahead of the one that says when a file was written."""
    return begun - written if written < begun else min(ended - written, 0.0)


def clock(apart: float, place: str) -> Finding:
    """Judges the seconds between this host's clock and that of a place."""
    told = f"{abs(apart):.0f} s {'ahead of' if apart > 0 else 'behind'} that of {place}"
    if abs(apart) < _APART:
        return ok("clock", f"within {_APART} s of that of {place}")
    remedy = "set this host's clock (NTP)"
    if abs(apart) >= _TOO_FAR:
        return wrong("clock", f"{told}; stores refuse such requests: {remedy}")
    return note("clock", f"{told}; {remedy}")


def _refused(subject: str, error: UserError | OSError) -> Finding:
    ours = isinstance(error, UserError | UnreachableError)
    text = str(error) if ours else mendable(error)
    if text is None:
        raise error
    return wrong(subject, " ".join(text.split()))
