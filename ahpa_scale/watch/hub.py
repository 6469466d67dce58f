# SPDX-License-Identifier: Apache-2.0
"""Rank 0's side of the watch: hears all ranks, judges, and tells them."""

from __future__ import annotations

import errno
import socket
import time

from ahpa_scale.watch.messages import Beat, Reply, Verdict, decode_beat, encode
from ahpa_scale.watch.pulse import Pulse
from ahpa_scale.watch.roll import Roll
from ahpa_scale.watch.station import Place, Station, listen, send

#: A process that ended just now may leave its port taken until its loader processes have gone.
_PATIENCE = 10.0
_TELLING = 2.0
_LINGER = 0.5


class Hub(Station):
    """Answers every beat, with the verdict once there is one.

    Args:
        place: of rank 0.
        pulse: of its main thread.
        silence: seconds without a beat after which a rank counts as gone.
        hang: seconds without progress of any rank after which the job counts as stuck; None: never.

    Raises:
        OSError: the port can't be had.
    """

    def __init__(self, place: Place, pulse: Pulse, silence: float, hang: float | None) -> None:
        super().__init__(place, pulse, silence)
        self.roll = Roll(
            place.world,
            place.per_node,
            silence=silence,
            hang=hang,
            interval=self.interval,
            port=place.port,
        )
        self._addresses: dict[int, tuple[str, int]] = {}
        self._socket = _bound(place)

    def step(self) -> bool:
        """Hears, answers, judges."""
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
        own = self.beat(hub=self.life)
        self.roll.heard(own, self.clock)
        for datagram, address in listen(self._socket):
            beat = decode_beat(datagram)
            if beat is None or not 0 < beat.rank < self.place.world:
                continue
            # A rank of an earlier attempt learns from the answer that rank 0 is another one.
            if beat.hub in ("", self.life):
                self.roll.heard(beat, self.clock)
                self._addresses[beat.rank] = address
            self._answer(own, beat, address, verdict)

    def _answer(
        self, own: Beat, beat: Beat, address: tuple[str, int], verdict: Verdict | None
    ) -> None:
        send(self._socket, encode(Reply(own, beat.state, verdict)), address)

    def _tell(self, verdict: Verdict) -> None:
        """Says it to all until they have it, or for two seconds: a host that has gone never
        will.
        """
        until = time.monotonic() + _TELLING
        while time.monotonic() < until and not self.roll.through(("left", "ended")):
            reply = encode(Reply(self.beat(hub=self.life), "alive", verdict))
            for address in self._addresses.values():
                send(self._socket, reply, address)
            self._hear(verdict)


def _bound(place: Place) -> socket.socket:
    """A socket on rank 0's port, open to other hosts only where there are any."""
    alone = place.world == place.per_node
    both = socket.has_dualstack_ipv6() and not alone
    until = time.monotonic() + _PATIENCE
    while True:
        found = socket.socket(socket.AF_INET6 if both else socket.AF_INET, socket.SOCK_DGRAM)
        try:
            if both:
                found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            found.bind(("127.0.0.1" if alone else "", place.port))
        except OSError as error:
            found.close()
            if error.errno != errno.EADDRINUSE and both:
                both = False  # a kernel that knows IPv6 and has it switched off
                continue
            if error.errno != errno.EADDRINUSE or time.monotonic() > until:
                raise
            time.sleep(_LINGER)
        else:
            return found
