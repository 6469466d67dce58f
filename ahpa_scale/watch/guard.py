# SPDX-License-Identifier: Apache-2.0
"""Runs the watch around training: starts it, and reports how the main thread ended."""

from __future__ import annotations

import faulthandler
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from ahpa_scale.exits import TRY_AGAIN
from ahpa_scale.printable import without_secrets
from ahpa_scale.watch.client import Client
from ahpa_scale.watch.hub import Hub
from ahpa_scale.watch.messages import HIGHEST_CODE
from ahpa_scale.watch.place import Place
from ahpa_scale.watch.pulse import Pulse
from ahpa_scale.watch.station import Station

_SIGNALLED = 128
#: Seconds that an ending rank waits until the others know why. A stopped rank also waits to learn
#: which rank is the cause: that takes three beats, and two seconds to tell the others.
_WORD = 10.0
#: Seconds for the interpreter to exit after the last report: gloo's destructors can hang.
_FAREWELL = 60.0
#: Names of torch.distributed, gloo and NCCL in errors of broken connections. Words such as
#: "timed out" also occur in errors of stores and loaders.
_LOST = re.compile(r"gloo|nccl|c10d|TCPStore|process ?group|closed by peer", re.I)


@contextmanager
def watching(place: Place, key: bytes, *, silence: float, hang: float | None) -> Iterator[Pulse]:
    """Watches the other ranks, and lets them watch this one, while the body runs.

    Args:
        place: place of this rank.
        key: key of the job. Datagrams not sealed with it are dropped.
        silence: seconds without a sign of life after which a rank counts as gone.
        hang: seconds without progress of any rank after which the job counts as stuck; None: never.

    Yields:
        The pulse on which the main thread marks its progress.

    Raises:
        PortError: rank 0 can't open its port.
    """
    pulse = Pulse()
    if place.rank == 0:
        station: Station = Hub(place, key, pulse, silence, hang)
    else:
        station = Client(place, key, pulse, silence)
    station.start()
    try:
        yield pulse
    except BaseException as error:
        _tell(station, error)
        raise
    else:
        station.say("left")
        # Rank 0 watches the others until they have left too.
        station.heeded.wait()
    finally:
        faulthandler.dump_traceback_later(_FAREWELL, exit=True)


def _tell(station: Station, error: BaseException) -> None:
    """Tells the others why this rank ends, before its connections close."""
    try:
        if is_lost_connection(error):
            # Another rank ended first. The verdict names it and ends this process.
            station.say("lost")
            station.heeded.wait(station.silence + _WORD)
        _say(station, error)
    except (SystemExit, KeyboardInterrupt) as stop:
        _say(station, stop)
        raise


def _say(station: Station, error: BaseException) -> None:
    code = _exit_code(error)
    if code == 0:
        station.say("left")
    elif isinstance(error, KeyboardInterrupt) or code > _SIGNALLED:
        station.say("stopped", _signal_name(code - _SIGNALLED))
    else:
        # An exit code that a rank chose, say for an input mistake, is for the whole job.
        station.say("failed", _words(error), code if isinstance(error, SystemExit) else TRY_AGAIN)
    station.heeded.wait(_WORD)


def _exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return _SIGNALLED + signal.SIGINT
    if not isinstance(error, SystemExit):
        return 1
    if error.code is None:
        return 0
    # The system keeps only the last byte: 256 would look like success to a waiting process.
    return error.code & HIGHEST_CODE if isinstance(error.code, int) else 1


def _words(error: BaseException) -> str:
    """Describes the error in one line without secrets, because it goes over the network. `say` cuts
    it to length.
    """
    return without_secrets(_described(error))


def _described(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        inner = error.__context__
        why = " ".join(str(inner).split()) if inner else f"exit code {error.code}"
        return f"ended the job: {why}"
    return f"failed: {type(error).__name__}: {' '.join(str(error).split())}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error says only that a connection between ranks broke, but not why."""
    module = type(error).__module__
    if module.startswith("torch.distributed") or type(error).__name__.startswith("Dist"):
        return True
    return isinstance(error, RuntimeError | ConnectionError) and bool(_LOST.search(str(error)))
