# SPDX-License-Identifier: Apache-2.0
"""How a command ends when it is asked to. What it writes appears whole or not at all, so it may
leave at any point. A run must save first: see `preemption`.
"""

from __future__ import annotations

import signal
from typing import NoReturn

from ahpa_scale import console
from ahpa_scale.exits import PREEMPTED


def leave_when_asked() -> None:
    """Makes SIGTERM end this process with one line and exit code 79, after a clean-up.

    Importing Composer replaces the handler, so call it again after that.
    """
    signal.signal(signal.SIGTERM, _leave)


def _leave(number: int, frame: object) -> NoReturn:
    # A second signal must not interrupt the clean-up.
    signal.signal(number, signal.SIG_IGN)
    console.say(f"{signal.Signals(number).name}: leaving; run the same command again to go on")
    raise SystemExit(PREEMPTED)
