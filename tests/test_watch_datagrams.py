# SPDX-License-Identifier: Apache-2.0
"""Datagrams that are not the job's: none ends it, and none stops its watch."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_watch import Ranks, free_udp_port, start  # noqa: F401
from watched_rank import KEY

from ahpa_scale.watch import Place, Pulse, job_key
from ahpa_scale.watch.client import Client
from ahpa_scale.watch.hub import Hub
from ahpa_scale.watch.messages import Beat, Reply, Verdict, decode_beat, decode_reply, encode
from ahpa_scale.watch.ports import QUESTION
from ahpa_scale.watch.seal import MOST_BYTES, Seal

_words = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=20)
_states = st.sampled_from(["alive", "lost", "stopped", "failed", "left", "ended"])
_beats = st.builds(
    Beat, st.integers(0, 9999), _words, st.integers(0, 99), _words, st.integers(0, 2**63), _words,
    _states, _words, st.integers(1, 255),
)  # fmt: skip
_verdicts = st.builds(Verdict, _words, st.integers(1, 255), st.lists(st.integers(0, 9)).map(tuple))
#: What JSON can hold in the place of a rank, a code, a state or a text.
_values = st.one_of(
    st.none(), st.booleans(), st.floats(), st.integers(-(2**70), 2**70), st.text(max_size=5),
    st.sampled_from([0, 256, -1, 1e400, "0", "failed"]), st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip
_bytes = st.binary(max_size=200).filter(lambda data: data != QUESTION) | st.just(b"[" * MOST_BYTES)
FAILED = Beat(1, "host", 1, "life", 9, "batch 9", "failed", "failed: by a stranger", 0)


@given(_beats, st.none() | _verdicts)
def test_messages_arrive_as_they_were_sent(beat, verdict):
    assert decode_beat(encode(beat)) == beat
    reply = Reply(beat, "alive", verdict)
    assert decode_reply(encode(reply)) == reply


class Ear:
    """A side of the watch of two ranks, stepped by hand, and a stranger's socket to it."""

    def __init__(self, rank: int, port: int) -> None:
        self.pulse = Pulse()
        place = Place(rank, 2, 1, rank, "127.0.0.1", port, port)
        if rank == 0:
            self.station: Hub | Client = Hub(place, KEY, self.pulse, 30.0, None)
            self.to = ("127.0.0.1", port)
        else:
            self.station = Client(place, KEY, self.pulse, 30.0)
            self.station.step()
            self.to = ("127.0.0.1", self.station._socket.getsockname()[1])
        self.stranger = socket.socket(type=socket.SOCK_DGRAM)
        self.stranger.bind(("127.0.0.1", 0))

    def hear(self, *datagrams: bytes) -> int:
        """How many of these it has dropped, going on as before."""
        before = self.pulse.dropped
        for datagram in datagrams:
            self.stranger.sendto(datagram, self.to)
        assert self.station.step()
        return self.pulse.dropped - before

    def close(self) -> None:
        """Both sockets."""
        self.stranger.close()
        self.station._socket.close()


@pytest.fixture(params=[0, 1], ids=["hub", "client"], scope="module")
def ear(request) -> Iterator[Ear]:
    with closing(Ear(request.param, free_udp_port())) as found:
        yield found


def sealed(ear: Ear, body: bytes, seal: Seal | None = None) -> bytes:
    """As the other side would send it."""
    kind = "beat" if ear.station.place.rank == 0 else "reply"
    return (seal or Seal(KEY)).close(kind, 1, body)


def message(ear: Ear, **changes: object) -> bytes:
    """A message of the kind that this side takes."""
    other = 1 - ear.station.place.rank
    beat = asdict(FAILED) | {"code": 75, "rank": other} | changes
    if other == 0:
        verdict = {"line": "all over", "code": changes.get("code", 75), "ranks": [], "kind": "own"}
        return json.dumps({"of": beat, "got": "alive", "verdict": verdict}).encode()
    return json.dumps(beat).encode()


@settings(deadline=None, max_examples=150)
@given(st.lists(_bytes, min_size=1, max_size=5))
def test_bytes_of_any_kind_are_dropped(ear, datagrams):
    assert ear.hear(*datagrams) == len(datagrams)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_message_that_was_changed_on_its_way_is_dropped(ear, data):
    whole = bytearray(sealed(ear, message(ear)))
    place = data.draw(st.integers(0, len(whole) - 1))
    cut = bytes(whole[:place])
    whole[place] ^= data.draw(st.integers(1, 255))
    assert ear.hear(bytes(whole), cut, sealed(ear, message(ear), Seal(job_key("", "another")))) == 3


@settings(deadline=None, max_examples=150)
@given(st.sampled_from([*asdict(FAILED)]), _values)
def test_a_field_of_another_type_or_size_is_dropped_whoever_sends_it(ear, field, value):
    good = FAILED.__class__(**(asdict(FAILED) | {"code": 75}))
    if decode_beat(json.dumps(asdict(good) | {field: value}).encode()) is not None:
        value = {"not": "of the type"}
    assert ear.hear(sealed(ear, message(ear, **{field: value}))) == 1


@pytest.mark.parametrize("code", [0, 256, -1, True, 75.0, None])
def test_no_failure_comes_with_the_code_of_a_success(ear, code):
    assert ear.hear(sealed(ear, message(ear, code=code))) == 1


def test_what_was_heard_once_is_dropped_the_second_time():
    with closing(Ear(0, free_udp_port())) as ear:
        seal, alive = Seal(KEY), encode(Beat(1, "host", 1, "life"))
        first, second = (seal.close("beat", 1, alive) for _ in range(2))
        assert ear.hear(first, second) == 0
        another = Seal(KEY).close("beat", 1, encode(Beat(1, "host", 1, "another life")))
        beyond = seal.close("beat", 7, encode(Beat(7, "host", 1, "life")))
        mistaken = seal.close("beat", 1, encode(Beat(0, "host", 1, "life")))
        assert ear.hear(first, second, another, beyond, mistaken) == 5


def test_a_flood_disturbs_nobody(start):  # noqa: F811
    """Of what once ended a job with exit code 0, and of other noise."""
    ranks: Ranks = start((60, "finish"), (60, "finish"))
    forged = json.dumps({**asdict(FAILED), "hub": ""}).encode()
    other = Seal(job_key("", "another job")).close("beat", 1, encode(Beat(1, "h", 1, "life")))
    over = threading.Event()

    def flood() -> None:
        with closing(socket.socket(type=socket.SOCK_DGRAM)) as noise:
            while not over.is_set():
                for datagram in (forged, other, b"", b"\xff", b"[" * 2000, bytes(60_000)):
                    noise.sendto(datagram, ("127.0.0.1", ranks.port))

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        assert ranks.ends() == [(0, ""), (0, "")]
    finally:
        over.set()
        thread.join()
