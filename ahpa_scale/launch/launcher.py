# SPDX-License-Identifier: Apache-2.0
"""Composer's launcher that passes on the signals which ask a job to save and leave.

Composer 0.32.1's own dies of SIGTERM at once and leaves its ranks behind, which nobody then
watches; in a container they die with it, unsaved.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Sequence
from subprocess import Popen

import psutil
from composer.cli import launcher

from ahpa_scale.requests import SIGNALS
from ahpa_scale.stops import CUT_SHORT, PREEMPTED
from ahpa_scale.watch import EXIT_CODE


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
    _ended_first.extend(p.returncode for p in processes.values() if p.poll())
    pass_on(signal.SIGTERM, None)
    _clean_up(processes)  # sends the second


def exit_code(ended_first: Sequence[int], composers: int) -> int:
    """What the job ends with: the code of a rank that ended by itself, and not of one that was
    ended for it, as Composer's would be where that one has the lower rank.

    Args:
        ended_first: codes of the ranks that had failed when the others were ended.
        composers: what Composer would end with.
    """
    codes = sorted(ended_first, key=lambda code: code in _FOLLOWERS) or [composers]
    return 128 - codes[0] if codes[0] < 0 else codes[0]  # as shells count a signal


#: Codes of ranks that end because another one did, or was asked to.
_FOLLOWERS = (EXIT_CODE, PREEMPTED, CUT_SHORT)
_ended_first: list[int] = []
_clean_up = launcher._cleanup_processes

if __name__ == "__main__":
    for one in SIGNALS:
        signal.signal(one, pass_on)
    launcher._cleanup_processes = end_all
    composers_code = launcher.main()
    sys.exit(exit_code(_ended_first, composers_code))
