# SPDX-License-Identifier: Apache-2.0
"""Messages between ranks. Each is one JSON object in the body of one datagram."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from ahpa_scale.exits import TRY_AGAIN

#: Most characters of a failure's text in a datagram: IPv6 guarantees packets of only 1,280 bytes.
MOST_TEXT = 600
#: A failed process ends with 1 to 255. Of a larger number the system keeps only the last byte.
HIGHEST_CODE = 255
_MOST_COUNT = 2**63

State = Literal["alive", "lost", "stopped", "failed", "left", "ended"]
"""alive; lost: its connections broke, perhaps because another rank ended; stopped: by a signal;
failed: it raised; left: it is done; ended: it got the verdict and exits."""
Kind = Literal["own", "stuck", "silent"]
STATES: tuple[str, ...] = get_args(State)
KINDS: tuple[str, ...] = get_args(Kind)


@dataclass(frozen=True)
class Beat:
    """What a rank reports about itself.

    Attributes:
        rank: its rank in the job.
        host: name of its host.
        node: number of its node.
        life: random id of the process. Its datagrams count up from 1.
        count: events passed.
        stage: where it is in training.
        state: its state.
        text: why it failed or was stopped.
        code: exit code for the other ranks if it failed.
    """

    rank: int
    host: str
    node: int
    life: str
    count: int = 0
    stage: str = ""
    state: State = "alive"
    text: str = ""
    code: int = TRY_AGAIN

    @property
    def name(self) -> str:
        """``rank 2 on host-b (node 1)``."""
        return f"rank {self.rank} on {self.host} (node {self.node})"


@dataclass(frozen=True)
class Verdict:
    """Why the job ends.

    Attributes:
        line: the reason in words, with the ranks.
        code: exit code.
        ranks: the ranks at fault.
        kind: own: these ranks end by themselves with their own message; stuck: they also print
            their stacks; silent: a rank is not heard.
    """

    line: str
    code: int = TRY_AGAIN
    ranks: tuple[int, ...] = ()
    kind: Kind = "silent"


@dataclass(frozen=True)
class Reply:
    """Rank 0's answer to a beat.

    Attributes:
        of: rank 0's own beat.
        got: state in the beat that it answers.
        verdict: None while all is well.
    """

    of: Beat
    got: State
    verdict: Verdict | None = None


def encode(message: Beat | Reply) -> bytes:
    """The body of one datagram."""
    return json.dumps(asdict(message), ensure_ascii=False, separators=(",", ":")).encode()


def one_line(text: str) -> str:
    """The text in the form that other ranks accept: unprintable characters become ``?``."""
    return "".join(character if character.isprintable() else "?" for character in text)


def decode_beat(body: bytes) -> Beat | None:
    """The beat in a body; None for anything else."""
    try:
        return _beat(json.loads(body))
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def decode_reply(body: bytes) -> Reply | None:
    """The reply in a body; None for anything else."""
    try:
        fields = json.loads(body)
        verdict = None if fields["verdict"] is None else _verdict(fields["verdict"])
        return Reply(_beat(fields["of"]), _one_of(STATES, fields["got"]), verdict)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _beat(fields: dict[str, Any]) -> Beat:
    beat = Beat(**fields)
    for number in (beat.rank, beat.node, beat.count):
        _whole(number, 0, _MOST_COUNT)
    _whole(beat.code, 1, HIGHEST_CODE)
    for text in (beat.host, beat.life, beat.stage, beat.text):
        _words(text)
    _one_of(STATES, beat.state)
    return beat


def _verdict(fields: dict[str, Any]) -> Verdict:
    if type(fields["ranks"]) is not list:
        raise ValueError("not a verdict")
    verdict = Verdict(**{**fields, "ranks": tuple(fields["ranks"])})
    for rank in verdict.ranks:
        _whole(rank, 0, _MOST_COUNT)
    _whole(verdict.code, 1, HIGHEST_CODE)
    _words(verdict.line)
    _one_of(KINDS, verdict.kind)
    return verdict


def _whole(number: Any, least: int, most: int) -> None:
    if type(number) is not int or not least <= number <= most:
        raise ValueError(f"{number!r} is not from {least} to {most}")


def _words(text: Any) -> None:
    if type(text) is not str or not text.isprintable():
        raise ValueError("not one line of text")


def _one_of(choices: tuple[str, ...], value: Any) -> Any:
    if value not in choices:
        raise ValueError(f"{value!r} is not one of {choices}")
    return value
