# SPDX-License-Identifier: Apache-2.0
"""Which signals ask a run to leave, and which of them count as one request.

A scheduler may signal every process of a job (srun, systemd, GNU timeout, a terminal's Ctrl-C), and
the launcher hands on its signal: a rank then gets two signals for one request. Our launcher hands
it on under another number, so the two can be told apart without a clock.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
#: They wait while our launcher's Python starts: a hang-up of the console must not end it either.
WAITING = (*SIGNALS, signal.SIGHUP)
#: A signal that comes again within these seconds counts once. GNU timeout sends it to its child,
#: and then to the child's group. torchrun hands on what the group got.
_ECHO = 1.0
#: A SIGTERM within these seconds after Ctrl-C comes from Composer's launcher, which got Ctrl-C too.
_FROM_COMPOSER = 10.0
#: Parents whose end only means that somebody's console has ended.
_CONSOLES = {"login", "screen", "sshd", "sshd-session", "su", "sudo", "systemd", "tmux"}
_SHELLS = {"ash", "bash", "dash", "fish", "ksh", "sh", "zsh"}


def handed_on(number: int) -> int:
    """The number under which our launcher hands a signal on."""
    return int(signal.SIGRTMIN) + number


HANDED_ON = tuple(handed_on(number) for number in SIGNALS)


def name_of(number: int) -> str:
    """A signal's name, whether it came directly or was handed on."""
    first = HANDED_ON.index(number) if number in HANDED_ON else None
    return (signal.Signals(number) if first is None else SIGNALS[first]).name


class Count:
    """How often a process has been asked to leave."""

    def __init__(self) -> None:
        self._direct = self._handed_on = 0
        self._last: dict[int, float] = {}

    @property
    def requests(self) -> int:
        """Requests so far. A request may come directly, handed on, or both: the larger counts."""
        return max(self._direct, self._handed_on)

    def hear(self, number: int, now: float) -> bool:
        """Counts one of `SIGNALS` or `HANDED_ON`.

        Args:
            number: the signal's number.
            now: monotonic seconds.

        Returns:
            Whether it is a new request.
        """
        before = self.requests
        if number in HANDED_ON:
            self._handed_on += 1
        elif not self._is_echo(number, now):
            self._direct += 1
            self._last[number] = now
        return self.requests > before

    def _is_echo(self, number: int, now: float) -> bool:
        if now - self._last.get(number, -_ECHO) < _ECHO:
            return True
        interrupted = self._last.get(signal.SIGINT)
        if number != signal.SIGTERM or interrupted is None or number in self._last:
            return False
        self._last[number] = now
        return now - interrupted < _FROM_COMPOSER


def send_on(pid: int, number: int) -> None:
    """Hands a signal on to a process: under our number if the process handles that."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, handed_on(number) if _catches(pid, handed_on(number)) else number)


def launcher_above() -> int | None:
    """The parent's process id if it is a launcher, whose end must end this rank too; else None.
    A console or a shell is no launcher: it may end and leave its background jobs running.
    """
    parent = os.getppid()
    if "RANK" not in os.environ or parent == 1:
        return None
    try:
        words = Path(f"/proc/{parent}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return None
    # Some servers show more than their name, such as 'sshd: user@pts/0'.
    name = words[0].split(":")[0].rpartition("/")[2].lstrip("-").lower()
    return None if name in _CONSOLES | _SHELLS else parent


def _catches(pid: int, number: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)
