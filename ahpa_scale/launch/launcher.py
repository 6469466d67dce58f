# SPDX-License-Identifier: Apache-2.0
"""Composer's launcher that passes on the signals which ask a job to save and leave.

Composer 0.32.1's own dies of SIGTERM at once and leaves its ranks behind, which nobody then
watches; in a container they die with it, unsaved.
"""

from __future__ import annotations

import contextlib
import signal
import sys

import psutil
from composer.cli.launcher import main

from ahpa_scale.requests import SIGNALS


def pass_on(number: int, frame: object) -> None:
    """Hands a signal to the ranks, and to nobody below them: a loader's worker that died of it
    would take its rank along before that has saved.
    """
    del frame
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            child.send_signal(number)


if __name__ == "__main__":
    for one in SIGNALS:
        signal.signal(one, pass_on)
    sys.exit(main())
