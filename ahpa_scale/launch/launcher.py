# SPDX-License-Identifier: Apache-2.0
"""Composer's launcher, extended to pass on signals that ask a job to save and leave.

Composer 0.32.1's own launcher dies of SIGTERM at once and leaves its ranks behind unwatched. In a
container the ranks die with it, unsaved.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Mapping, Sequence
from subprocess import Popen
from typing import TYPE_CHECKING

import psutil

from ahpa_scale import console
from ahpa_scale.exits import CUT_SHORT, PREEMPTED, TRY_AGAIN
from ahpa_scale.preemption import NOTHING_TO_SAVE, listening
from ahpa_scale.signals import HANDED_ON, SIGNALS, WAITING, Count, send_on
from ahpa_scale.streams import make_lasting

if TYPE_CHECKING:
    Ranks = Mapping[int, Popen[str]]

#: Exit codes of ranks that end because another rank ended, or because they were asked to.
_FOLLOWERS = (TRY_AGAIN, PREEMPTED, CUT_SHORT)
#: Exit codes of a rank killed by a signal before it listened.
_UNHEARD = tuple(-number for number in (*SIGNALS, *HANDED_ON))


class Relay:
    """Passes signals on to the ranks, but not to their children, such as loader workers."""

    def __init__(self) -> None:
        self._count = Count()
        self._started = False

    @property
    def asked(self) -> bool:
        """Whether the job was asked to leave."""
        return self._count.requests > 0

    def hear(self, number: int, frame: object) -> None:
        """A signal handler. If a process group gets a signal twice, it is passed on once."""
        del frame
        if self._count.hear(number, time.monotonic()) and self._started:
            self.send(number)

    def start(self) -> None:
        """All ranks are there. Passes on a request that came while they were started."""
        self._started = True
        if self.asked:
            self.send(signal.SIGTERM)

    def send(self, number: int) -> None:
        """Sends a signal to all ranks."""
        for child in psutil.Process().children():
            send_on(child.pid, number)


def end_all(relay: Relay, processes: Ranks) -> list[int]:
    """Ends the remaining ranks after one has failed. It sends two signals: the first only asks to
    save, which is impossible without the failed rank.

    Returns:
        The exit codes of the ranks that had failed before.
    """
    ended_first = [process.returncode for process in processes.values() if process.poll()]
    for _ in range(2):
        relay.send(signal.SIGTERM)
    return ended_first


def exit_code(ended_first: Sequence[int], composers: int, *, asked: bool = False) -> int:
    """The job's exit code: the code of a rank that failed by itself. Composer would take the code
    of the lowest rank, even if that rank was only ended because another had failed.

    Args:
        ended_first: codes of the ranks that had failed before the others were ended.
        composers: exit code that Composer would use.
        asked: whether the job was asked to leave. Then a signal may have killed a rank that did
            not listen yet.
    """
    codes = sorted(ended_first, key=lambda code: code in _FOLLOWERS) or [composers]
    if asked and codes[0] in _UNHEARD:
        return PREEMPTED
    return 128 - codes[0] if codes[0] < 0 else codes[0]  # as shells report a signal


def main() -> int:
    """Runs Composer's launcher with the arguments of this process.

    Returns:
        The job's exit code.
    """
    make_lasting()
    relay, ended_first = Relay(), list[int]()
    for number in SIGNALS:
        signal.signal(number, relay.hear)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # Afterwards the handlers above are back, also if Composer's import replaces them.
    with listening(preparing=True):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WAITING)  # `launch` has blocked them
        from composer.cli import launcher

    monitor, clean_up = launcher._monitor_processes, launcher._cleanup_processes

    def watch(processes: Ranks) -> None:
        relay.start()
        monitor(processes)

    def end(processes: Ranks) -> None:
        ended_first.extend(end_all(relay, processes))
        clean_up(processes)

    launcher._monitor_processes, launcher._cleanup_processes = watch, end
    composers = launcher.main()
    for number in SIGNALS:  # otherwise they would kill the interpreter while it ends
        signal.signal(number, signal.SIG_IGN)
    if relay.asked and composers in _UNHEARD:
        console.say(NOTHING_TO_SAVE)
    return exit_code(ended_first, composers, asked=relay.asked)


if __name__ == "__main__":
    sys.exit(main())
