# SPDX-License-Identifier: Apache-2.0
"""Which signals ask a run to leave, and which of them are one request.

A scheduler may signal every process of a job (srun, systemd, GNU timeout, a terminal's Ctrl-C),
and the launcher hands on what it gets: a rank then hears of one request twice. Ours hands it on
under another number, so that no clock has to tell the two apart.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
#: Seconds within which a signal is the same one again: GNU timeout sends it to its child, and then
#: to the group that the child is in. torchrun hands on what the group got.
_ECHO = 1.0
#: Seconds after Ctrl-C within which a SIGTERM is that of Composer's launcher, which got it too.
_FROM_COMPOSER = 10.0
#: Parents whose end is only that of somebody's console.
_CONSOLES = {"login", "screen", "sshd", "sshd-session", "su", "sudo", "systemd", "tmux"}
_SHELLS = {"ash", "bash", "dash", "fish", "ksh", "sh", "zsh"}


def handed_on(number: int) -> int:
    """The number under which our launcher hands a signal on."""
    return int(signal.SIGRTMIN) + number


HANDED_ON = tuple(handed_on(number) for number in SIGNALS)


def name_of(number: int) -> str:
    """A signal's name, whether it came by itself or was handed on."""
    first = HANDED_ON.index(number) if number in HANDED_ON else None
    return (signal.Signals(number) if first is None else SIGNALS[first]).name


class Count:
    """How often a process has been asked to leave."""

    def __init__(self) -> None:
        self._direct = self._handed_on = 0
        self._last: dict[int, float] = {}

    @property
    def requests(self) -> int:
        """Requests so far: what was handed on has come by itself as well, or it has not."""
        return max(self._direct, self._handed_on)

    def hear(self, number: int, now: float) -> bool:
        """Takes in one of `SIGNALS` or `HANDED_ON`.

        Args:
            number: of the signal.
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
    """Hands a signal on to a process: as it came, where that process does not know ours."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, handed_on(number) if _catches(pid, handed_on(number)) else number)


def launcher_above() -> int | None:
    """The parent, where that is a launcher whose end this process can't outlive in order: what
    starts a rank and is neither a console nor a shell, which may end and leave behind what it has
    put in the background.
    """
    parent = os.getppid()
    if "RANK" not in os.environ or parent == 1:
        return None
    try:
        words = Path(f"/proc/{parent}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return None
    # Some servers write what they do behind their name.
    name = words[0].split(":")[0].rpartition("/")[2].lstrip("-").lower()
    return None if name in _CONSOLES | _SHELLS else parent


def _catches(pid: int, number: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)
