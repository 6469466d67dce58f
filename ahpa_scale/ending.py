# SPDX-License-Identifier: Apache-2.0
"""Ends a rank: shows the reason first, then ends the process in limited time.

A normal exit of the interpreter waits for threads, loaders' workers and gloo's destructors. Each
of them can take for ever.
"""

from __future__ import annotations

import atexit
import faulthandler
import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from ahpa_scale import console
from ahpa_scale.exits import NOT_SAVED, PREEMPTED, ROLL_BACK, STOPPED

#: Seconds from an error to the end of its process.
PATIENCE = 25.0
#: Seconds that callbacks and trackers have to close after a run that went well.
CLOSING = 60.0
#: Seconds for exit handlers: trackers, loggers, shared memory.
_FAREWELL = 20.0
#: Extra seconds until C code ends the process: a thread that holds the GIL stops all Python code.
_LAST_RESORT = 5.0
ERROR = 1
#: The file of Composer that calls callbacks.
_ENGINE = "composer/core/engine.py"
_OWN = (STOPPED, ROLL_BACK, PREEMPTED, NOT_SAVED)


class WayOut:
    """Shows an error once, and makes the process end in time.

    Attributes:
        training: if set, `one_way_out` ends the process itself at every exception, SystemExit too.
    """

    def __init__(self) -> None:
        self.training = False
        self._told: BaseException | None = None

    @contextmanager
    def told_first(self, patience: Callable[[BaseException], float]) -> Iterator[None]:
        """Shows an error of the body before anything else handles it.

        Args:
            patience: gives the seconds that an error waits before it is shown; 0: none. A broken
                connection waits until it is known which rank ended first.
        """
        try:
            yield
        except SystemExit:
            raise
        except BaseException as error:
            waits = patience(error)
            if not waits:
                self.tell(error)
            end_within(PATIENCE + waits, ERROR)
            end_children()
            raise

    def tell(self, error: BaseException) -> None:
        """Shows the traceback, once."""
        if self._told is not error:
            self._told = error
            sys.excepthook(type(error), error, error.__traceback__)
            _flush()


@contextmanager
def one_way_out(*, always: bool = False) -> Iterator[WayOut]:
    """Ends this process if the body raises or the run stops itself. Users' mistakes, which are
    printed already, pass as SystemExit.

    Args:
        always: ends it in every case, also after success.
    """
    way_out = WayOut()
    try:
        yield way_out
    except SystemExit as end:
        code = _code_of(end)
        if always or way_out.training or code in _OWN:
            leave_for_good(code)
        raise
    except BaseException as error:
        way_out.tell(error)
        leave_for_good(ERROR)
    if always:
        leave_for_good(0)


def leave_for_good(code: int) -> NoReturn:
    """Runs the exit handlers for a limited time, then ends this process.

    Args:
        code: exit code.
    """
    end_within(_FAREWELL, code)
    end_children()
    atexit._run_exitfuncs()
    _flush()
    os._exit(code)


def end_within(seconds: float, code: int) -> threading.Timer:
    """Ends this process after a time, whatever its threads do, and says where the main thread
    hangs.
    """
    faulthandler.dump_traceback_later(seconds + _LAST_RESORT, exit=True)
    timer = threading.Timer(seconds, _give_up, (seconds, code))
    timer.daemon = True
    timer.start()
    return timer


@contextmanager
def ended_unless_done(seconds: float, code: int) -> Iterator[None]:
    """Ends this process like `end_within` if the body takes longer."""
    timer = end_within(seconds, code)
    try:
        yield
    finally:
        timer.cancel()
        faulthandler.cancel_dump_traceback_later()


def _give_up(seconds: float, code: int) -> None:
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    text = f"error: leaving with code {code}: {_awaited(frame)} took more than {seconds:g} s"
    console.shout(text, level=logging.ERROR, fields={"exit_code": code})
    os._exit(code)


def _awaited(frame: FrameType | None) -> str:
    """Where a thread is: file and line, and the callback or tracker that Composer has called."""
    if frame is None:
        return "the end"
    called, place = frame, f"{frame.f_code.co_filename}:{frame.f_lineno}"
    for above, _ in traceback.walk_stack(frame):
        if above.f_code.co_filename.endswith(_ENGINE):
            owner = type(called.f_locals.get("self")).__name__
            return f"{owner}.{called.f_code.co_name} ({place})"
        called = above
    return place


def end_children() -> None:
    """Kills loaders' workers: they ignore other signals, and a normal exit would wait for a worker
    that waits for a store. Call it on the main thread.
    """
    with suppress(ValueError):  # not on the main thread: torch's handler may then report their end
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in multiprocessing.active_children():
        child.kill()


def _code_of(end: SystemExit) -> int:
    if end.code is None:
        return 0
    if isinstance(end.code, int):
        return end.code
    sys.stderr.write(f"{end.code}\n")
    return ERROR


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
