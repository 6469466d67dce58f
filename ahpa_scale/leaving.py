# SPDX-License-Identifier: Apache-2.0
"""How a command ends when it is asked to. A run saves first, and has `requests` for that; what a
command writes appears whole or not at all, so it may leave wherever it is.
"""

from __future__ import annotations

import signal
from typing import NoReturn

from ahpa_scale import console
from ahpa_scale.exits import PREEMPTED


def leave_when_asked() -> None:
    """Has SIGTERM end this process with one line and exit code 79, its folders cleared up.

    Importing Composer sets a handler of its own, so it is called again after that.
    """
    signal.signal(signal.SIGTERM, _leave)


def _leave(number: int, frame: object) -> NoReturn:
    # Another one must not interrupt the clearing up.
    signal.signal(number, signal.SIG_IGN)
    console.say(f"{signal.Signals(number).name}: leaving; run the same command again to go on")
    raise SystemExit(PREEMPTED)
