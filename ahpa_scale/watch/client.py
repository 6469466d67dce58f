# SPDX-License-Identifier: Apache-2.0
"""The other ranks' side of the watch: beats to rank 0, and measures its silence."""

from __future__ import annotations

import socket
import time
from dataclasses import replace

from ahpa_scale.watch.messages import Beat, Reply, Verdict, decode_reply, encode
from ahpa_scale.watch.pulse import Pulse
from ahpa_scale.watch.roll import FIREWALL
from ahpa_scale.watch.station import Place, Station, listen, send


class Client(Station):
    """Tells rank 0 how this rank is, and ends when told to or when rank 0 is gone.

    Args:
        place: of this rank.
        pulse: of its main thread.
        silence: seconds without an answer after which rank 0 counts as gone.
    """

    def __init__(self, place: Place, pulse: Pulse, silence: float) -> None:
        super().__init__(place, pulse, silence)
        self._hub: Beat | None = None
        self._heard = 0.0
        self._due = 0.0
        self._socket: socket.socket | None = None
        self._target = (place.address, place.port)

    def step(self) -> bool:
        """Beats when it is time, listens, judges."""
        unheard = self.state in ("left", "failed", "stopped") and not self.heeded.is_set()
        urgent = unheard or self._hub is None
        if urgent or self.clock >= self._due:
            self._due = self.clock + self.interval
            self._send(self.beat(hub=self._life_of_hub()))
        verdict = self._listen()
        if verdict is None and self._unanswered():
            if self.state == "left":
                # This rank is through; whether rank 0 is, its own exit code tells.
                self.heeded.set()
                return False
            verdict = self._gone()
        if verdict is not None:
            own = verdict.kind == "own" and self.place.rank in verdict.ranks
            if not own:
                self._send(replace(self.beat(hub=self._life_of_hub()), state="ended"))
                self.leave(verdict)
            self.heeded.set()
            return False
        return not (self.state == "left" and self.heeded.is_set())

    def _life_of_hub(self) -> str:
        return "" if self._hub is None else self._hub.life

    def _send(self, beat: Beat) -> None:
        if self._socket is None:
            try:
                family, kind, *_, target = socket.getaddrinfo(
                    self.place.address, self.place.port, type=socket.SOCK_DGRAM
                )[0]
            except OSError:
                return  # the name of a host that is still starting
            self._socket = socket.socket(family, kind)
            self._target = target  # type: ignore[assignment]
        send(self._socket, encode(beat), self._target)

    def _listen(self) -> Verdict | None:
        """Takes in rank 0's answers; the verdict where one is among them."""
        if self._socket is None:
            time.sleep(self.interval)
            return None
        for datagram, _ in listen(self._socket):
            reply = decode_reply(datagram)
            if reply is None:
                continue
            if self._hub is not None and self._hub.life != reply.of.life:
                return Verdict(f"{reply.of.name} has been started anew, without this rank")
            self._hub, self._heard = reply.of, self.clock
            if reply.verdict is not None:
                return reply.verdict
            self._heed(reply)
        return None

    def _heed(self, reply: Reply) -> None:
        # A rank that was stopped waits for the verdict: another one may be why a launcher did it.
        if self.state == reply.got and reply.got in ("left", "failed"):
            self.heeded.set()

    def _unanswered(self) -> bool:
        """Whether rank 0 has gone; before the ranks have met it may still be starting."""
        if self._hub is None and not self.pulse.met:
            self._heard = self.clock
        return self.clock - self._heard >= self.silence

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
