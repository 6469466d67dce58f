# SPDX-License-Identifier: Apache-2.0
"""One rank under the watch, without torch: marks batches for a while, then does what it is told.

usage: watched_rank.py WATCH MEETING PRESENT BATCHES END. Ranks meet as soon as there are PRESENT of
them, each with a file in the folder MEETING; their first batch leaves another there. WATCH is the
section `watch` as JSON, a batch takes a tenth of a second and END is one of finish, raise, refuse,
succeed, lose, stall, break, die. A rank that stalls is alive and does nothing more; one that breaks
does so in its watch. One that nobody watches says so. Ranks share a key and do without torch,
unless the variable JOIN is set: then they meet as those of a run do.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

from ahpa_scale.config.errors import exit_on_user_error
from ahpa_scale.config.schema import Config, Watch
from ahpa_scale.run.watch import watch_ranks
from ahpa_scale.watch import Pulse, place_from, watching
from ahpa_scale.watch.station import Station

KEY = bytes(32)


def stop(number: int, frame: object) -> None:
    """As Composer does it."""
    del frame
    sys.exit(128 + number)


def main(watch: str, meeting: str, present: str, batches: str, end: str) -> None:
    """Marks and ends."""
    signal.signal(signal.SIGTERM, stop)
    section = Watch(**json.loads(watch))
    with exit_on_user_error(), _watched(section) as found:
        if found is None:
            print("unwatched", file=sys.stderr)
        pulse = found or Pulse()
        Path(meeting, str(os.getpid())).touch()
        while len(list(Path(meeting).glob("[0-9]*"))) < int(present):
            time.sleep(0.05)
        pulse.met = True
        for batch in range(int(batches)):
            pulse.mark("forward", batch)
            Path(meeting, f"begun-{os.getpid()}").touch()
            time.sleep(0.1)
        if end == "raise":
            raise ValueError("this batch\nis broken")
        if end == "refuse":
            try:
                raise ValueError("run.yaml:3: no such VAE")
            except ValueError:
                raise SystemExit(2) from None
        if end == "succeed":
            sys.exit(256)
        if end == "break":
            Station.beat = None
            time.sleep(30)
        if end == "lose":
            raise RuntimeError("[pair.cc:534] Connection closed by peer [10.0.0.2]:43021")
        if end == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        while end == "stall":
            time.sleep(0.1)


def _watched(section: Watch) -> AbstractContextManager[Pulse | None]:
    place = place_from(os.environ, section.port)
    if "JOIN" in os.environ or place is None or not section.enabled:
        return watch_ranks(Config(run_name="a", max_duration="1ba", watch=section))
    return watching(place, KEY, silence=section.silence, hang=section.hang)


if __name__ == "__main__":
    main(*sys.argv[1:])
