# SPDX-License-Identifier: Apache-2.0
"""What both sides of the watch (rank 0 and the others) share: a thread, a clock, an exit."""

from __future__ import annotations

import faulthandler
import logging
import math
import os
import secrets
import socket
import sys
import tempfile
import threading
import time
import traceback
from abc import ABC, abstractmethod

from ahpa_scale import console
from ahpa_scale.exits import FAILED, TRY_AGAIN
from ahpa_scale.watch.messages import MOST_TEXT, Beat, State, Verdict, one_line
from ahpa_scale.watch.place import Place
from ahpa_scale.watch.pulse import Pulse
from ahpa_scale.watch.seal import MOST_BYTES, Seal

#: Longest step in seconds that the watch's clock counts. On a paused or overloaded machine this
#: thread did not listen, so the rest does not count as silence of other ranks.
_LONGEST_STEP = 2.0
_LISTEN = 0.2
_YIELD = 5.0
#: Most datagrams read at once, so that a flood can't keep the thread from judging.
_MOST = 1_000
_log = logging.getLogger(__name__)


class Station(threading.Thread, ABC):
    """The watch's thread on one rank. Collectives of the main thread can't block it.

    Args:
        place: place of this rank.
        key: key of the job.
        pulse: pulse of this rank's main thread.
        silence: seconds without a sign of life after which a rank counts as gone.
    """

    def __init__(self, place: Place, key: bytes, pulse: Pulse, silence: float) -> None:
        super().__init__(name="watch", daemon=True)
        self.place, self.pulse, self.silence = place, pulse, silence
        self.seal = Seal(key)
        self.interval = min(1.0, silence / 10)
        self.life = secrets.token_hex(8)
        self.host = one_line(socket.gethostname())
        self.clock = 0.0
        self.heeded = threading.Event()
        self._word: tuple[State, str, int] = ("alive", "", TRY_AGAIN)
        self._last = time.monotonic()
        self._told_drop = -math.inf

    def say(self, state: State, text: str = "", code: int = TRY_AGAIN) -> None:
        """Makes the thread report this rank's state. `heeded` is set once the others know."""
        self.heeded.clear()
        self._word = (state, one_line(text[:MOST_TEXT]), code)

    def run(self) -> None:
        """Beats, listens and judges until the rank leaves or the job ends. If the watch itself
        fails, it ends the process: without beats, the rank would count as gone.
        """
        try:
            while self.step():
                now = time.monotonic()
                self.clock += min(now - self._last, _LONGEST_STEP)
                self._last = now
        except BaseException:
            told: dict[str, object] = {"exit_code": FAILED, "traceback": traceback.format_exc()}
            text = f"error: the watch of rank {self.place.rank} has failed"
            if not console.is_json():
                text = f"{told['traceback']}{text}"
            console.shout(text, level=logging.CRITICAL, fields=told)
            os._exit(FAILED)

    @abstractmethod
    def step(self) -> bool:
        """One round; False ends the thread."""

    @property
    def state(self) -> State:
        """The state that this rank reports."""
        return self._word[0]

    def beat(self) -> Beat:
        """This rank's current beat."""
        state, text, code = self._word
        place, pulse = self.place, self.pulse
        stage = one_line(pulse.stage)
        return Beat(
            place.rank, self.host, place.node, self.life, pulse.count, stage, state, text, code
        )

    def drop(self, sender: tuple[str, int]) -> None:
        """Counts a datagram that is not of this job, or not new. Logs some of them."""
        self.pulse.dropped += 1
        if _log.isEnabledFor(logging.DEBUG) and self.clock - self._told_drop >= self.interval:
            self._told_drop = self.clock
            host, port = sender[:2]
            text = f"watch: dropped a datagram from {host}:{port}: not of this job, or not new"
            console.shout(text, level=logging.DEBUG)

    def leave(self, verdict: Verdict) -> None:
        """Ends this process with the verdict's line and code, because the main thread may be
        stuck for ever.
        """
        stuck = verdict.kind == "stuck" and self.place.rank in verdict.ranks
        told: dict[str, object] = {"exit_code": verdict.code, "batch": self.pulse.batch}
        if stuck and console.is_json():
            told["stacks"] = _stacks()
        console.shout(f"error: {verdict.line}", level=logging.ERROR, fields=told)
        if stuck and not console.is_json() and console.takes_writes():
            faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)
        if verdict.kind == "own":
            # Composer's launcher takes the code of the first rank to end. Let another be the first.
            time.sleep(_YIELD)
        os._exit(verdict.code)


def listen(sock: socket.socket) -> list[tuple[bytes, tuple[str, int]]]:
    """The datagrams that have arrived, after a wait of at most 0.2 s."""
    datagrams: list[tuple[bytes, tuple[str, int]]] = []
    sock.settimeout(_LISTEN)
    while len(datagrams) < _MOST:
        try:
            datagrams.append(sock.recvfrom(MOST_BYTES + 1))
        except (TimeoutError, BlockingIOError):
            return datagrams
        except OSError:
            # The link is down, or nobody has opened the port yet.
            time.sleep(_LISTEN)
            return datagrams
        sock.setblocking(False)
    return datagrams


def send(sock: socket.socket, datagram: bytes, to: tuple[str, int]) -> None:
    """Sends and ignores errors: the other side measures what does not arrive."""
    try:
        sock.sendto(datagram, to)
    except OSError:
        return


def _stacks() -> str:
    """The stacks of all threads. faulthandler can only write them to a file."""
    try:
        with tempfile.TemporaryFile() as file:
            faulthandler.dump_traceback(file=file, all_threads=True)
            file.seek(0)
            return file.read().decode(errors="replace")
    except OSError as error:
        return f"not to be had: {error}"
