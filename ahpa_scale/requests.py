# SPDX-License-Identifier: Apache-2.0
"""What is asked of a run from outside: to leave (SIGTERM, SIGUSR1, a file ``STOP``), or to save
now (a file ``SAVE``).

Schedulers warn with a signal before they take a machine away. The main thread may then stand in a
collective for long, so a thread of its own listens; the run acts between two batches, on all ranks
together. torch is not imported.
"""

from __future__ import annotations

import logging
import math
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from ahpa_scale import console, storage
from ahpa_scale.stops import CUT_SHORT

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
#: Names of the files in the checkpoints' folder; each is removed when it has been seen.
STOP_FILE, SAVE_FILE = "STOP", "SAVE"
_BETWEEN_LOOKS = 5.0
_log = logging.getLogger(__name__)


@dataclass
class Requests:
    """Asked of this rank, and agreed on by all of them.

    Attributes:
        leave: why this rank is asked to leave; None if it isn't.
        save: whether this rank is asked for a checkpoint.
        leaving: all ranks leave after this batch, with a checkpoint.
        saving: all ranks save after this batch.
        heeded: the run ends by itself now, all being saved: further signals mean nothing.
    """

    leave: str | None = None
    save: bool = False
    leaving: bool = False
    saving: bool = False
    heeded: bool = False

    def agree(self, leave: bool, save: bool) -> None:
        """Notes what all ranks found together between two batches."""
        self.leaving = self.leaving or leave
        self.saving = self.saving or save
        if save:  # one that is asked for since then waits for the next batch
            self.save = False


@contextmanager
def listening(
    *, grace: float | None = None, switches: str | None = None, look_every: float = _BETWEEN_LOOKS
) -> Iterator[Requests]:
    """Listens while the body runs. To be entered on the main thread.

    A second signal ends the process at once, and so does the end of the grace time: with exit code
    80 and without a checkpoint.

    Args:
        grace: seconds from the first signal; None: without end.
        switches: folder or URL in which this process looks for the files; None: nowhere.
        look_every: seconds between two looks.
    """
    requests = Requests()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    listener = _Listener(requests, reader, grace)
    before = {number: signal.signal(number, _pass) for number in SIGNALS}
    old_wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    _reset_in_children()
    thread = threading.Thread(target=listener.run, name="requests", daemon=True)
    thread.start()
    over = threading.Event()
    if switches is not None:
        # On a thread of its own, for which nobody waits: a store may take minutes to answer.
        look = (requests, switches, look_every, over)
        threading.Thread(target=_watch_switches, args=look, name="switches", daemon=True).start()
    try:
        yield requests
    finally:
        over.set()
        signal.set_wakeup_fd(old_wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writer)  # the listener reads the end
        thread.join()
        os.close(reader)


class _Listener:
    """The work of the thread that hears signals."""

    def __init__(self, requests: Requests, reader: int, grace: float | None) -> None:
        self._requests = requests
        self._reader = reader
        self._grace = grace
        self._deadline: float | None = None
        # Not select(): a process with over a thousand open files would get a number beyond its set.
        self._heard = select.poll()
        self._heard.register(reader, select.POLLIN)

    def run(self) -> None:
        """Until the pipe is closed."""
        while True:
            if self._heard.poll(self._pause()):
                numbers = os.read(self._reader, 64)
                if not numbers:
                    return
                for number in numbers:
                    self._signal(number)
            else:
                _leave_at_once(f"the grace time of {self._grace:g} s has passed")

    def _pause(self) -> int | None:
        """Milliseconds of grace that are left, rounded up; None: without end."""
        if self._deadline is None:
            return None
        return math.ceil(1e3 * max(self._deadline - time.monotonic(), 0.0))

    def _signal(self, number: int) -> None:
        # Launchers send one to all ranks when the first one has ended.
        if number not in SIGNALS or self._requests.heeded:
            return
        name = signal.Signals(number).name
        if self._requests.leave is not None:
            _leave_at_once(f"a second signal, {name}")
        self._requests.leave = name
        if self._grace is not None:
            self._deadline = time.monotonic() + self._grace
        within = "" if self._grace is None else f" within {self._grace:g} s"
        _say(f"{name}: saving a checkpoint after this batch{within}, then leaving")


def _watch_switches(requests: Requests, folder: str, every: float, over: threading.Event) -> None:
    """The work of the thread that looks for files."""
    while not over.wait(every):
        try:
            for name in (STOP_FILE, SAVE_FILE):
                path = storage.join(folder, name)
                if storage.exists(path):
                    storage.remove(path)
                    _take(requests, name)
        except (OSError, ValueError) as error:
            _log.debug("no look for switches in %s: %s", folder, error)


def _take(requests: Requests, name: str) -> None:
    if name == SAVE_FILE:
        requests.save = True
        _say(f"file {name}: saving a checkpoint after this batch")
    elif requests.leave is None:
        requests.leave = f"the file {name}"
        _say(f"file {name}: saving a checkpoint after this batch, then leaving")


def _pass(number: int, frame: object) -> None:
    """The thread has been told already."""


def _leave_at_once(why: str) -> None:
    _say(f"{why}: leaving at once, without a checkpoint")
    os._exit(CUT_SHORT)


def _say(text: str) -> None:
    # A console that is gone or full must not end the thread that listens.
    with suppress(OSError, ValueError):
        console.say(text, level=logging.WARNING)


_registered = False


def _reset_in_children() -> None:
    """Loaders' worker processes must end by the signal that ends workers, and must not tell us."""
    global _registered
    if not _registered:
        os.register_at_fork(after_in_child=_forget)
        _registered = True


def _forget() -> None:
    if threading.current_thread() is not threading.main_thread():
        return
    for number in SIGNALS:
        if signal.getsignal(number) is _pass:
            signal.signal(number, signal.SIG_DFL)
            signal.set_wakeup_fd(-1)
