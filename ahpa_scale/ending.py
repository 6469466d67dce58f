# SPDX-License-Identifier: Apache-2.0
"""How a rank ends, whatever ended it: the reason first, and then nothing can hold it up.

An interpreter that goes by itself waits for its threads, for loaders' workers and for gloo's
destructors, each of which can take for ever.
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
#: Seconds for what is registered to run at the end: trackers, loggers, shared memory.
_FAREWELL = 20.0
#: For a thread that holds the interpreter's lock, so that no Python runs.
_LAST_RESORT = 5.0
ERROR = 1
#: Composer's caller of callbacks.
_ENGINE = "composer/core/engine.py"
_OWN = (STOPPED, ROLL_BACK, PREEMPTED, NOT_SAVED)


class WayOut:
    """Says once what went wrong, and sees to it that the process ends in time.

    Attributes:
        training: from now on no exception leads back to the interpreter.
    """

    def __init__(self) -> None:
        self.training = False
        self._told: BaseException | None = None

    @contextmanager
    def told_first(self, patience: Callable[[BaseException], float]) -> Iterator[None]:
        """Says an error of the body before anything else is done about it.

        Args:
            patience: seconds that an error may wait before it is said: one that only tells that a
                connection broke, while it is asked which rank has ended first.
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
    """Ends this process where the body raises or the run stops itself; mistakes of the user that
    were said already pass as SystemExit.

    Args:
        always: ends it by whatever way the body is left.
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
    """Runs what is registered for the end, for a while, and ends this process.

    Args:
        code: exit code.
    """
    end_within(_FAREWELL, code)
    end_children()
    atexit._run_exitfuncs()
    _flush()
    os._exit(code)


def end_within(seconds: float, code: int) -> threading.Timer:
    """Ends this process after a time, whatever its threads do meanwhile, and says what the main
    thread waits for.
    """
    faulthandler.dump_traceback_later(seconds + _LAST_RESORT, exit=True)
    timer = threading.Timer(seconds, _give_up, (seconds, code))
    timer.daemon = True
    timer.start()
    return timer


@contextmanager
def ended_unless_done(seconds: float, code: int) -> Iterator[None]:
    """Ends this process as `end_within` where the body takes longer."""
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
    """What a thread stands in, and the callback or tracker that Composer has called there."""
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
    """Kills loaders' workers: they ignore the signals that others end by, and one that waits for a
    store would be waited for. To be called on the main thread.
    """
    with suppress(ValueError):  # not the main thread: torch's handler may then tell of their end
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
