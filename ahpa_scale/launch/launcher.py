# SPDX-License-Identifier: Apache-2.0
"""Composer's launcher that passes on the signals which ask a job to save and leave.

Composer 0.32.1's own dies of SIGTERM at once and leaves its ranks behind, which nobody then
watches; in a container they die with it, unsaved.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from subprocess import Popen

import psutil
from composer.cli import launcher

from ahpa_scale.requests import SIGNALS


def pass_on(number: int, frame: object) -> None:
    """Hands a signal to the ranks, and to nobody below them: a loader's worker that died of it
    would take its rank along before that has saved.
    """
    del frame
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            child.send_signal(number)


def end_all(processes: dict[int, Popen[str]]) -> None:
    """Ends the ranks that are left when one has failed: to them a first signal is a request to
    save, which the lost rank makes impossible.
    """
    pass_on(signal.SIGTERM, None)
    _clean_up(processes)  # sends the second


_clean_up = launcher._cleanup_processes

if __name__ == "__main__":
    for one in SIGNALS:
        signal.signal(one, pass_on)
    launcher._cleanup_processes = end_all
    sys.exit(launcher.main())
