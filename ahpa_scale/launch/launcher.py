# SPDX-License-Identifier: Apache-2.0
"""Composer's launcher that passes on the signals which ask a job to save and leave.

Composer 0.32.1's own dies of SIGTERM at once and leaves its ranks behind, which nobody then
watches; in a container they die with it, unsaved.
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
from ahpa_scale.signals import HANDED_ON, SIGNALS, Count, send_on
from ahpa_scale.streams import make_lasting

if TYPE_CHECKING:
    Ranks = Mapping[int, Popen[str]]

#: Codes of ranks that end because another one did, or was asked to.
_FOLLOWERS = (TRY_AGAIN, PREEMPTED, CUT_SHORT)
#: What kills a rank that does not listen yet.
_UNHEARD = tuple(-number for number in (*SIGNALS, *HANDED_ON))


class Relay:
    """Hands signals on to the ranks, and to nobody below them: a loader's worker is not asked."""

    def __init__(self) -> None:
        self._count = Count()
        self._started = False

    @property
    def asked(self) -> bool:
        """Whether the job was asked to leave."""
        return self._count.requests > 0

    def hear(self, number: int, frame: object) -> None:
        """A signal handler. What reaches a group of processes twice is handed on once."""
        del frame
        if self._count.hear(number, time.monotonic()) and self._started:
            self.send(number)

    def start(self) -> None:
        """All ranks are there: what was heard while they were started is theirs as well."""
        self._started = True
        if self.asked:
            self.send(signal.SIGTERM)

    def send(self, number: int) -> None:
        """To all ranks."""
        for child in psutil.Process().children():
            send_on(child.pid, number)


def end_all(relay: Relay, processes: Ranks) -> list[int]:
    """Ends the ranks that are left when one has failed: to them a first signal is a request to
    save, which the lost rank makes impossible.

    Returns:
        The codes of those that had ended before.
    """
    ended_first = [process.returncode for process in processes.values() if process.poll()]
    for _ in range(2):
        relay.send(signal.SIGTERM)
    return ended_first


def exit_code(ended_first: Sequence[int], composers: int, *, asked: bool = False) -> int:
    """What the job ends with: the code of a rank that ended by itself, and not of one that was
    ended for it, as Composer's would be where that one has the lower rank.

    Args:
        ended_first: codes of the ranks that had failed when the others were ended.
        composers: what Composer would end with.
        asked: whether the job was asked to leave: a rank may have had no time to listen.
    """
    codes = sorted(ended_first, key=lambda code: code in _FOLLOWERS) or [composers]
    if asked and codes[0] in _UNHEARD:
        return PREEMPTED
    return 128 - codes[0] if codes[0] < 0 else codes[0]  # as shells count a signal


def main() -> int:
    """Runs Composer's launcher with the arguments of this process.

    Returns:
        The job's exit code.
    """
    make_lasting()
    relay, ended_first = Relay(), list[int]()
    with listening(preparing=True):  # while this is imported
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # that `launch` had wait
        from composer.cli import launcher

    for one in SIGNALS:
        signal.signal(one, relay.hear)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    monitor, clean_up = launcher._monitor_processes, launcher._cleanup_processes

    def watch(processes: Ranks) -> None:
        relay.start()
        monitor(processes)

    def end(processes: Ranks) -> None:
        ended_first.extend(end_all(relay, processes))
        clean_up(processes)

    launcher._monitor_processes, launcher._cleanup_processes = watch, end
    composers = launcher.main()
    for one in SIGNALS:  # an interpreter that ends would die of them
        signal.signal(one, signal.SIG_IGN)
    if relay.asked and composers in _UNHEARD:
        console.say(NOTHING_TO_SAVE)
    return exit_code(ended_first, composers, asked=relay.asked)


if __name__ == "__main__":
    sys.exit(main())
