# SPDX-License-Identifier: Apache-2.0
"""What ranks tell one another, one JSON object in one datagram."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

#: Exit code of ranks that end because of another one: sysexits.h's EX_TEMPFAIL, "try again later".
EXIT_CODE = 75
#: Characters of a failure's text that a datagram carries: the smallest IPv6 packet holds 1,280.
MOST_TEXT = 600

State = Literal["alive", "lost", "stopped", "failed", "left", "ended"]
"""alive; lost: its connections broke, which another rank's end may have done; stopped: by a signal;
failed: it raised; left: it is through; ended: it has had the verdict and goes."""


@dataclass(frozen=True)
class Beat:
    """What a rank says of itself.

    Attributes:
        rank: in the job.
        host: name of its host.
        node: number of its node.
        life: drawn by the process, so that a second one in its place is noticed.
        hub: what rank 0's process has drawn, as far as this rank knows it.
        count: events passed.
        stage: where it is.
        state: how it is.
        text: why, where it failed or was stopped.
        code: exit code of the others where it failed.
    """

    rank: int
    host: str
    node: int
    life: str
    hub: str = ""
    count: int = 0
    stage: str = ""
    state: State = "alive"
    text: str = ""
    code: int = EXIT_CODE

    @property
    def name(self) -> str:
        """``rank 2 on host-b (node 1)``."""
        return f"rank {self.rank} on {self.host} (node {self.node})"


@dataclass(frozen=True)
class Verdict:
    """Why the job ends.

    Attributes:
        line: in words, naming the ranks.
        code: exit code.
        ranks: the ranks at fault.
        kind: own: they end by themselves, with their own message; stuck: their stacks tell more.
    """

    line: str
    code: int = EXIT_CODE
    ranks: tuple[int, ...] = ()
    kind: Literal["own", "stuck", "silent"] = "silent"


@dataclass(frozen=True)
class Reply:
    """Rank 0's answer to a beat.

    Attributes:
        of: rank 0's own beat.
        got: state of the beat that it answers.
        verdict: None while all is well.
    """

    of: Beat
    got: State
    verdict: Verdict | None = None


def encode(message: Beat | Reply) -> bytes:
    """One datagram."""
    return json.dumps(asdict(message), separators=(",", ":")).encode()


def decode_beat(datagram: bytes) -> Beat | None:
    """The beat in a datagram; None for anything else that comes to the port."""
    try:
        return _beat(json.loads(datagram))
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def decode_reply(datagram: bytes) -> Reply | None:
    """The reply in a datagram; None for anything else that comes to the port."""
    try:
        fields = json.loads(datagram)
        verdict = fields["verdict"]
        if verdict is not None:
            verdict = Verdict(**{**verdict, "ranks": tuple(verdict["ranks"])})
        return Reply(_beat(fields["of"]), fields["got"], verdict)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _beat(fields: dict[str, Any]) -> Beat:
    beat = Beat(**fields)
    whole = (beat.rank, beat.node, beat.count, beat.code)
    if any(type(number) is not int for number in whole) or not isinstance(beat.host, str):
        raise ValueError("not a beat")
    return beat
