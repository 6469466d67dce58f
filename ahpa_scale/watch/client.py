# SPDX-License-Identifier: Apache-2.0
"""The other ranks' side of the watch: sends beats to rank 0 and measures its silence."""

from __future__ import annotations

import socket
import time
from dataclasses import replace

from ahpa_scale.watch.messages import Beat, Reply, Verdict, decode_reply, encode
from ahpa_scale.watch.place import Place
from ahpa_scale.watch.pulse import Pulse
from ahpa_scale.watch.roll import FIREWALL
from ahpa_scale.watch.station import Station, listen, send


class Client(Station):
    """Reports this rank's state to rank 0. Ends when told to, or when rank 0 is gone.

    Args:
        place: place of this rank.
        key: key of the job.
        pulse: pulse of this rank's main thread.
        silence: seconds without an answer after which rank 0 counts as gone.
    """

    def __init__(self, place: Place, key: bytes, pulse: Pulse, silence: float) -> None:
        super().__init__(place, key, pulse, silence)
        self._hub: Beat | None = None
        self._newest = 0
        self._heard = 0.0
        self._due = 0.0
        self._socket: socket.socket | None = None
        self._target = (place.address, place.port)

    def step(self) -> bool:
        """Sends a beat when it is due, then listens and judges."""
        unheard = self.state in ("left", "failed", "stopped") and not self.heeded.is_set()
        # Rank 0 may have started to listen only now. A late answer may be lost in a flood.
        urgent = unheard or self._hub is None or self.clock - self._heard > 2 * self.interval
        if urgent or self.clock >= self._due:
            self._due = self.clock + self.interval
            self._send(self.beat())
        verdict = self._listen()
        if verdict is None and self._unanswered():
            if self.state == "left":
                # This rank is done. Rank 0's own exit code tells whether rank 0 is.
                self.heeded.set()
                return False
            verdict = self._gone()
        if verdict is not None:
            own = verdict.kind == "own" and self.place.rank in verdict.ranks
            if not own:
                self._send(replace(self.beat(), state="ended"))
                self.leave(verdict)
            self.heeded.set()
            return False
        return not (self.state == "left" and self.heeded.is_set())

    def _send(self, beat: Beat) -> None:
        if self._socket is None:
            try:
                family, kind, *_, target = socket.getaddrinfo(
                    self.place.address, self.place.port, type=socket.SOCK_DGRAM
                )[0]
            except OSError:
                return  # the name of a starting host may not resolve yet
            self._socket = socket.socket(family, kind)
            if self.place.on_loopback:
                self._socket.bind((self.place.address, 0))
            self._target = target  # type: ignore[assignment]
        send(self._socket, self.seal.close("beat", beat.rank, encode(beat)), self._target)

    def _listen(self) -> Verdict | None:
        """Reads rank 0's answers. Returns the verdict if one of them has it."""
        if self._socket is None:
            time.sleep(self.interval)
            return None
        for datagram, sender in listen(self._socket):
            reply = self._open(datagram)
            if reply is None:
                self.drop(sender)
                continue
            self._hub, self._heard = reply.of, self.clock
            if reply.verdict is not None:
                return reply.verdict
            self._heed(reply)
        return None

    def _open(self, datagram: bytes) -> Reply | None:
        """A new answer of rank 0 to this rank; None for any other datagram."""
        opened = self.seal.open("reply", datagram)
        if opened is None or opened.rank != self.place.rank or opened.number <= self._newest:
            return None
        reply = decode_reply(opened.body)
        if reply is None or reply.of.rank != 0:
            return None
        self._newest = opened.number
        return reply

    def _heed(self, reply: Reply) -> None:
        # A stopped rank waits for the verdict: another rank may be why a launcher stopped it.
        if self.state == reply.got and reply.got in ("left", "failed"):
            self.heeded.set()

    def _unanswered(self) -> bool:
        """Whether rank 0 counts as gone. Before the ranks have met, it may still be starting.

        If rank 0 was killed, launchers stop the ranks beside it. A stopped rank waits only 5 beats.
        """
        if self._hub is None and not self.pulse.met:
            self._heard = self.clock
        stopped = self.state == "stopped" and self._hub is not None
        return self.clock - self._heard >= (5 * self.interval if stopped else self.silence)

    def _gone(self) -> Verdict:
        if self._hub is None:
            return Verdict(
                f"rank 0 on {self.place.address} (node 0) joined the job and does not answer on "
                f"UDP port {self.place.port}; {FIREWALL}"
            )
        seconds = self.clock - self._heard
        return Verdict(
            f"{self._hub.name} has not been heard from for {seconds:.0f} s; last seen at "
            f"{self._hub.stage}"
        )
