# SPDX-License-Identifier: Apache-2.0
"""Requests to a run from outside: to leave (SIGTERM, SIGUSR1, Ctrl-C, a file ``STOP``), or to save
now (a file ``SAVE``).

Schedulers send a signal before they take a machine away. A separate thread listens, because the
main thread may wait in a collective. All ranks act together, between two batches. No torch.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from ahpa_scale import console
from ahpa_scale.errors import UserError
from ahpa_scale.exits import CUT_SHORT, FAILED, PREEMPTED
from ahpa_scale.signals import HANDED_ON, SIGNALS, Count, launcher_above, name_of

#: SIGHUP is handled so that it does not end the process.
_HEARD = (*SIGNALS, *HANDED_ON, signal.SIGHUP)
#: Names of the files in the checkpoints' folder; each is removed when it has been seen.
STOP_FILE, SAVE_FILE = "STOP", "SAVE"
NOTHING_TO_SAVE = "leaving before the first batch; there is nothing to save"
_BETWEEN_LOOKS = 5.0
#: Seconds for a checkpoint after the launcher has gone.
_ORPHANED = 8.0
#: If the launcher ends within these seconds after a hang-up of the terminal, the hang-up ended it.
_HANGS_UP = 10.0
_STOP_LISTENING = 0
_log = logging.getLogger(__name__)


@dataclass
class Requests:
    """What this rank is asked for, and what all ranks have agreed on.

    Attributes:
        leave: why this rank is asked to leave; None if it isn't.
        save: whether this rank is asked for a checkpoint.
        leaving: all ranks leave after this batch, with a checkpoint.
        saving: all ranks save after this batch.
        heeded: all is saved and the run is ending: further signals are ignored.
        preparing: nothing has been trained yet: a request to leave ends the process at once.
        grace: seconds from the first signal to the end of the process; None: no limit.
    """

    leave: str | None = None
    save: bool = False
    leaving: bool = False
    saving: bool = False
    heeded: bool = False
    preparing: bool = False
    grace: float | None = None

    def agree(self, leave: bool, save: bool) -> None:
        """Records what all ranks agreed on between two batches."""
        self.leaving = self.leaving or leave
        self.saving = self.saving or save
        if save:  # otherwise a newer request waits for the next batch
            self.save = False


@contextmanager
def listening(*, grace: float | None = None, preparing: bool = False) -> Iterator[Requests]:
    """Listens while the body runs. Enter it on the main thread.

    A second signal, or the end of the grace time, ends the process at once, with exit code 80 and
    no checkpoint. The end of the launcher is a request as well; a hang-up of the terminal is not.
    Forked processes, such as loaders' workers, ignore these signals and end with this process.

    Args:
        grace: seconds from the first signal; None: no limit.
        preparing: nothing is trained yet: see `Requests`.
    """
    requests = Requests(grace=grace, preparing=preparing)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    listener = _Listener(requests, reader)
    before = {number: signal.getsignal(number) for number in _HEARD}
    hear_signals()
    old_wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    _reset_in_children()
    thread = threading.Thread(target=listener.run, name="requests", daemon=True)
    thread.start()
    try:
        yield requests
    finally:
        signal.set_wakeup_fd(old_wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        # Closing the writer would give no end of file: forked processes may hold the pipe open.
        os.write(writer, bytes([_STOP_LISTENING]))
        thread.join(timeout=_BETWEEN_LOOKS)
        os.close(writer)
        if not thread.is_alive():
            os.close(reader)


def hear_signals() -> None:
    """Sets the signal handlers. Call it on the main thread, and again after Composer's import."""
    for number in _HEARD:
        signal.signal(number, _pass)


@contextmanager
def looking(
    requests: Requests, folder: str | None, every: float = _BETWEEN_LOOKS
) -> Iterator[None]:
    """Looks for the files ``STOP`` and ``SAVE`` in a folder while the body runs.

    Args:
        requests: where they are recorded.
        folder: folder or URL; None: looks nowhere.
        every: seconds between two looks.
    """
    over = threading.Event()
    if folder is not None:
        # On a separate thread that nobody waits for: a store may take minutes to answer.
        look = (requests, folder, every, over)
        threading.Thread(target=_watch_switches, args=look, name="switches", daemon=True).start()
    try:
        yield
    finally:
        over.set()


class _Listener:
    """The work of the thread that hears signals."""

    def __init__(self, requests: Requests, reader: int) -> None:
        self._requests = requests
        self._reader = reader
        self._count = Count()
        self._parent = launcher_above()
        self._asked: float | None = None
        self._orphaned: float | None = None
        self._hung_up = -math.inf
        # Not select(): it fails for descriptors of 1024 and above.
        self._heard = select.poll()
        self._heard.register(reader, select.POLLIN)

    def run(self) -> None:
        """Runs until it is told to stop. Its failure ends the process, which else hears nothing."""
        try:
            while self._step():
                pass
        except BaseException:
            traceback.print_exc(file=sys.stderr)
            os._exit(FAILED)

    def _step(self) -> bool:
        if self._heard.poll(self._pause()):
            for number in os.read(self._reader, 64):
                if number == _STOP_LISTENING:
                    return False
                self._signal(number)
        left = self._left()
        if left is not None and left <= 0:
            _leave_at_once(f"the grace time of {self._grace():g} s has passed")
        if self._parent is not None and os.getppid() != self._parent:
            self._parent = None
            self._orphan()
        return True

    def _grace(self) -> float | None:
        return self._requests.grace if self._orphaned is None else self._orphaned

    def _left(self) -> float | None:
        """Seconds of grace that are left; None: no limit."""
        grace = self._grace()
        if self._asked is None or grace is None:
            return None
        return self._asked + grace - time.monotonic()

    def _pause(self) -> int | None:
        """Milliseconds until the next look, rounded up; None: no limit."""
        left = self._left()
        waits = [seconds for seconds in (left, self._parent and 0.5) if seconds is not None]
        return math.ceil(1e3 * max(min(waits), 0.0)) if waits else None

    def _signal(self, number: int) -> None:
        now = time.monotonic()
        if number == signal.SIGHUP:
            self._hung_up = now
            return
        # After `heeded`, launchers still signal all ranks when the first one has ended.
        if number not in (*SIGNALS, *HANDED_ON) or self._requests.heeded:
            return
        if not self._count.hear(number, now):
            return
        name = name_of(number)
        if self._count.requests > 1:
            _leave_at_once(f"a second signal, {name}")
        self._ask(name, self._requests.grace)

    def _orphan(self) -> None:
        """The launcher has gone, so nobody would end this rank when another one fails."""
        if time.monotonic() - self._hung_up < _HANGS_UP or self._requests.heeded:
            return
        if self._requests.leave is None:
            self._orphaned = min(_ORPHANED, self._requests.grace or _ORPHANED)
            self._ask("the end of its launcher", self._orphaned)

    def _ask(self, why: str, grace: float | None) -> None:
        if self._requests.preparing:
            _say(f"{why}: {NOTHING_TO_SAVE}")
            os._exit(PREEMPTED)
        self._requests.leave = why
        self._asked = time.monotonic()
        within = "" if grace is None else f" within {grace:g} s"
        _say(f"{why}: saving a checkpoint after this batch{within}, then leaving")


def _watch_switches(requests: Requests, folder: str, every: float, over: threading.Event) -> None:
    """The work of the thread that looks for files."""
    from ahpa_scale import storage  # late: it imports slowly, and signals must be heard first

    while not over.wait(every):
        try:
            with storage.asking_once():
                for name in (STOP_FILE, SAVE_FILE):
                    path = storage.join(folder, name)
                    if storage.exists(path):
                        storage.remove(path)
                        _take(requests, name)
        except (OSError, UserError) as error:
            _log.debug("no look for switches in %s: %s", folder, error)


def _take(requests: Requests, name: str) -> None:
    if name == SAVE_FILE:
        requests.save = True
        _say(f"file {name}: saving a checkpoint after this batch")
    elif requests.leave is None:
        requests.leave = f"the file {name}"
        _say(f"file {name}: saving a checkpoint after this batch, then leaving")


def _pass(number: int, frame: object) -> None:
    """Does nothing: the wakeup descriptor has told the listening thread already."""


def _leave_at_once(why: str) -> None:
    _say(f"{why}: leaving at once, without a checkpoint", {"exit_code": CUT_SHORT})
    os._exit(CUT_SHORT)


def _say(text: str, fields: Mapping[str, int] | None = None) -> None:
    # A console that is gone or full must not end the thread that listens.
    with suppress(OSError, ValueError):
        console.say(text, level=logging.WARNING, fields=fields)


_registered = False
#: Whether this process was forked from one that listens.
_answered_above = False
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def _reset_in_children() -> None:
    global _registered
    if not _registered:
        os.register_at_fork(after_in_child=_ignore)
        _registered = True


def _ignore() -> None:
    """In a forked process: leaves signals to the parent, and ends with it in every case."""
    global _answered_above
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGTERM) is not _pass:
        return
    signal.set_wakeup_fd(-1)
    _answered_above = True
    leave_signals_to_parent()
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def leave_signals_to_parent() -> None:
    """Ignores the signals again in a fork of a listening process, after a library has set handlers,
    as torch does in loaders' workers.
    """
    if _answered_above:
        for number in _HEARD:
            signal.signal(number, signal.SIG_IGN)
