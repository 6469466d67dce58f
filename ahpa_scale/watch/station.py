# SPDX-License-Identifier: Apache-2.0
"""What rank 0's side and the others' side of the watch share: a thread, a clock, a way out."""

from __future__ import annotations

import faulthandler
import logging
import os
import secrets
import select
import socket
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass

from ahpa_scale import console
from ahpa_scale.watch.messages import EXIT_CODE, MOST_TEXT, Beat, State, Verdict
from ahpa_scale.watch.pulse import Pulse

#: A thread that did not run for longer, in a paused machine or an overloaded one, has not listened
#: either: that time is no one's silence.
_LONGEST_STEP = 2.0
_LISTEN = 0.2
_YIELD = 5.0
_LARGEST = 65_536
#: Datagrams taken at once, so that a flood of them can't keep the thread from judging.
_MOST = 10_000


@dataclass(frozen=True)
class Place:
    """Where a rank stands, and where rank 0 listens.

    Attributes:
        rank, world, per_node, node: ranks and nodes from 0.
        address: host of rank 0.
        port: UDP port on it.
    """

    rank: int
    world: int
    per_node: int
    node: int
    address: str
    port: int


class Station(threading.Thread, ABC):
    """The watch's thread of one rank. The main thread's collectives can't hold it up.

    Args:
        place: of this rank.
        pulse: of its main thread.
        silence: seconds without a sign of life after which a rank counts as gone.
    """

    def __init__(self, place: Place, pulse: Pulse, silence: float) -> None:
        super().__init__(name="watch", daemon=True)
        self.place, self.pulse, self.silence = place, pulse, silence
        self.interval = min(1.0, silence / 10)
        self.life = secrets.token_hex(8)
        self.host = socket.gethostname()
        self.clock = 0.0
        self.heeded = threading.Event()
        self._word: tuple[State, str, int] = ("alive", "", EXIT_CODE)
        self._last = time.monotonic()

    def say(self, state: State, text: str = "", code: int = EXIT_CODE) -> None:
        """Has the thread tell the others how this rank is; `heeded` is set once they know."""
        self.heeded.clear()
        self._word = (state, text[:MOST_TEXT], code)

    def run(self) -> None:
        """Beats, listens and judges until the rank leaves or the job ends."""
        while self.step():
            now = time.monotonic()
            self.clock += min(now - self._last, _LONGEST_STEP)
            self._last = now

    @abstractmethod
    def step(self) -> bool:
        """One round; False ends the thread."""

    @property
    def state(self) -> State:
        """What this rank says of itself."""
        return self._word[0]

    def beat(self, hub: str) -> Beat:
        """What this rank has to say now."""
        state, text, code = self._word
        place, pulse = self.place, self.pulse
        return Beat(
            place.rank,
            self.host,
            place.node,
            self.life,
            hub,
            pulse.count,
            pulse.stage,
            state,
            text,
            code,
        )

    def leave(self, verdict: Verdict) -> None:
        """Ends this process with the verdict's line and code; the main thread may be stuck for
        good.
        """
        stuck = verdict.kind == "stuck" and self.place.rank in verdict.ranks
        told: dict[str, object] = {"exit_code": verdict.code, "batch": self.pulse.batch}
        if stuck and console.is_json():
            told["stacks"] = _stacks()
        _write(console.line(f"error: {verdict.line}", level=logging.ERROR, fields=told))
        if stuck and not console.is_json() and _takes_writes():
            faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)
        if verdict.kind == "own":
            # Composer's launcher takes the exit code of a rank that ends first: not this one's.
            time.sleep(_YIELD)
        os._exit(verdict.code)


def listen(sock: socket.socket) -> list[tuple[bytes, tuple[str, int]]]:
    """The datagrams that are there, after at most a fifth of a second of waiting."""
    found: list[tuple[bytes, tuple[str, int]]] = []
    sock.settimeout(_LISTEN)
    while len(found) < _MOST:
        try:
            found.append(sock.recvfrom(_LARGEST))
        except (TimeoutError, BlockingIOError):
            return found
        except OSError:
            # A link that is down, or a port that nobody has opened yet.
            time.sleep(_LISTEN)
            return found
        sock.setblocking(False)
    return found


def send(sock: socket.socket, datagram: bytes, to: tuple[str, int]) -> None:
    """Sends, or doesn't: what does not arrive is what the other side measures."""
    try:
        sock.sendto(datagram, to)
    except OSError:
        return


def _stacks() -> str:
    """Those of all threads, as faulthandler has them, which only writes to files."""
    try:
        with tempfile.TemporaryFile() as file:
            faulthandler.dump_traceback(file=file, all_threads=True)
            file.seek(0)
            return file.read().decode(errors="replace")
    except OSError as error:
        return f"not to be had: {error}"


def _takes_writes() -> bool:
    """Whether stderr takes a line now: nobody may be reading a pipe that is full."""
    return bool(select.select([], [2], [], 1.0)[1])


def _write(line: str) -> None:
    # Past sys.stderr, whose lock the main thread may hold.
    if _takes_writes():
        os.write(2, line.encode(errors="replace"))
