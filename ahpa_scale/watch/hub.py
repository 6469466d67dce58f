# SPDX-License-Identifier: Apache-2.0
"""Rank 0's side of the watch: hears all ranks, judges, and tells them the verdict."""

from __future__ import annotations

import time

from ahpa_scale.watch.messages import Beat, Reply, Verdict, decode_beat, encode
from ahpa_scale.watch.place import Place
from ahpa_scale.watch.ports import ANSWER, QUESTION, udp_port
from ahpa_scale.watch.pulse import Pulse
from ahpa_scale.watch.roll import Roll
from ahpa_scale.watch.station import Station, listen, send

_TELLING = 2.0
_LINGER = 0.5


class Hub(Station):
    """Answers every beat, and adds the verdict once there is one.

    Args:
        place: place of rank 0.
        key: key of the job.
        pulse: pulse of rank 0's main thread.
        silence: seconds without a beat after which a rank counts as gone.
        hang: seconds without progress of any rank after which the job counts as stuck; None: never.

    Raises:
        PortError: the port can't be opened.
    """

    def __init__(
        self, place: Place, key: bytes, pulse: Pulse, silence: float, hang: float | None
    ) -> None:
        super().__init__(place, key, pulse, silence)
        self.roll = Roll(
            place.world,
            place.per_node,
            silence=silence,
            hang=hang,
            interval=self.interval,
            port=place.port,
        )
        self._addresses: dict[int, tuple[str, int]] = {}
        #: By rank: its life and the number of its newest datagram.
        self._newest: dict[int, tuple[str, int]] = {}
        self._socket = udp_port(place)

    def step(self) -> bool:
        """Hears, answers and judges."""
        self._hear()
        verdict = self.roll.judge(self.clock)
        if verdict is not None:
            self._tell(verdict)
            own = verdict.kind == "own" and self.place.rank in verdict.ranks
            if not own:
                self.leave(verdict)
            self.heeded.set()
            return False
        if self.state == "left" and self.roll.through(("left",)):
            until = time.monotonic() + _LINGER
            while time.monotonic() < until:
                self._hear()
            self.heeded.set()
            return False
        return True

    def _hear(self, verdict: Verdict | None = None) -> None:
        if self.pulse.met:
            self.roll.met(self.clock)
        own = self.beat()
        self.roll.heard(own, self.clock)
        for datagram, address in listen(self._socket):
            if datagram == QUESTION:
                send(self._socket, ANSWER, address)
                continue
            beat = self._open(datagram)
            if beat is None:
                self.drop(address)
                continue
            self.roll.heard(beat, self.clock)
            self._addresses[beat.rank] = address
            self._send(Reply(own, beat.state, verdict), beat.rank)

    def _open(self, datagram: bytes) -> Beat | None:
        """A new beat from a rank of this job; None for any other datagram."""
        opened = self.seal.open("beat", datagram)
        if opened is None or not 0 < opened.rank < self.place.world:
            return None
        beat = decode_beat(opened.body)
        if beat is None or beat.rank != opened.rank:
            return None
        life, number = self._newest.get(beat.rank, (beat.life, 0))
        if beat.life != life or opened.number <= number:
            return None
        self._newest[beat.rank] = (life, opened.number)
        return beat

    def _send(self, reply: Reply, rank: int) -> None:
        datagram = self.seal.close("reply", rank, encode(reply))
        send(self._socket, datagram, self._addresses[rank])

    def _tell(self, verdict: Verdict) -> None:
        """Sends the verdict until all ranks have it, at most two seconds: a dead host never
        answers.
        """
        until = time.monotonic() + _TELLING
        while time.monotonic() < until and not self.roll.through(("left", "ended")):
            reply = Reply(self.beat(), "alive", verdict)
            for rank in self._addresses:
                self._send(reply, rank)
            self._hear(verdict)
