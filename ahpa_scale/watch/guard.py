# SPDX-License-Identifier: Apache-2.0
"""The watch around training: starts it, and says how the main thread left."""

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
#: Seconds that a rank waits until the others know why it ends, or until it knows whose end a
#: launcher stops it for: that takes three beats, and two seconds to tell the others.
_WORD = 10.0
#: Seconds that an interpreter may take to go once all is said: gloo's destructors can hang.
_FAREWELL = 60.0
#: How torch.distributed, gloo and NCCL name themselves where a connection broke. Words such as
#: "timed out" alone are also a store's, or a loader's.
_LOST = re.compile(r"gloo|nccl|c10d|TCPStore|process ?group|closed by peer", re.I)


@contextmanager
def watching(place: Place, key: bytes, *, silence: float, hang: float | None) -> Iterator[Pulse]:
    """Watches the other ranks, and has them watch this one, while the body runs.

    Args:
        place: of this rank.
        key: of the job; what comes without it is dropped.
        silence: seconds without a sign of life after which a rank counts as gone.
        hang: seconds without progress of any rank after which the job counts as stuck; None: never.

    Yields:
        What the main thread marks its progress on.

    Raises:
        PortError: rank 0's port can't be had.
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
        # Rank 0 stays to watch the others until they have left as well.
        station.heeded.wait()
    finally:
        faulthandler.dump_traceback_later(_FAREWELL, exit=True)


def _tell(station: Station, error: BaseException) -> None:
    """Tells the others why this rank ends, before its connections do."""
    try:
        if is_lost_connection(error):
            # Another rank has ended first. The verdict names it, and ends this process.
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
        # A rank that chose its code, for a mistake in the input say, chose it for the job.
        station.say("failed", _words(error), code if isinstance(error, SystemExit) else TRY_AGAIN)
    station.heeded.wait(_WORD)


def _exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return _SIGNALLED + signal.SIGINT
    if not isinstance(error, SystemExit):
        return 1
    if error.code is None:
        return 0
    # The last byte is what the system keeps: 256 is a success to whoever waits for the process.
    return error.code & HIGHEST_CODE if isinstance(error.code, int) else 1


def _words(error: BaseException) -> str:
    """What happened to it, in one line that tells no secret: it goes over the network, and is cut
    there.
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
    """Whether an error says only that a connection between ranks broke, and not what broke it."""
    module = type(error).__module__
    if module.startswith("torch.distributed") or type(error).__name__.startswith("Dist"):
        return True
    return isinstance(error, RuntimeError | ConnectionError) and bool(_LOST.search(str(error)))
