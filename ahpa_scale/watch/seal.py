# SPDX-License-Identifier: Apache-2.0
"""Authentic datagrams: a header, a body, and an HMAC-SHA256 of both with the job's key.

Each sender counts its datagrams, so that a recorded one can't be replayed.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass
from typing import Literal

#: Size in bytes of the largest datagram accepted. A message has some hundred bytes.
MOST_BYTES = 8_192
_MAGIC = b"AHPA\x02"
_TAG = 32
#: Magic, kind, rank, number.
_HEADER = struct.Struct("!5scIQ")
_KINDS = {"beat": b"b", "reply": b"r"}
Kind = Literal["beat", "reply"]


def job_key(secret: str, token: str) -> bytes:
    """The key of one job.

    Args:
        secret: secret that only the ranks know; empty if there is none.
        token: random token of this start of the job, so that no two starts share a key.
    """
    return hmac.digest(secret.encode(), f"ahpa_scale watch {token}".encode(), "sha256")


@dataclass(frozen=True)
class Opened:
    """The content of an authentic datagram of this job.

    Attributes:
        rank: rank that sent the beat, or that the reply is for.
        number: number of the datagram, counted by its sender from 1.
        body: the message.
    """

    rank: int
    number: int
    body: bytes


class Seal:
    """Seals messages of this job, and opens them.

    Args:
        key: key of the job.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._sent = 0

    def close(self, kind: Kind, rank: int, body: bytes) -> bytes:
        """A sealed datagram with the rank that a beat is from, or a reply is for."""
        self._sent += 1
        told = _HEADER.pack(_MAGIC, _KINDS[kind], rank, self._sent) + body
        return told + self._tag(told)

    def open(self, kind: Kind, datagram: bytes) -> Opened | None:
        """The content of a datagram; None if it has another kind or is not of this job."""
        if not _HEADER.size + _TAG < len(datagram) <= MOST_BYTES:
            return None
        told, tag = datagram[:-_TAG], datagram[-_TAG:]
        magic, mark, rank, number = _HEADER.unpack_from(told)
        # The cheapest check comes first: most datagrams of a flood fail it.
        if magic != _MAGIC or mark != _KINDS[kind]:
            return None
        if not hmac.compare_digest(tag, self._tag(told)):
            return None
        return Opened(rank, number, told[_HEADER.size :])

    def _tag(self, told: bytes) -> bytes:
        return hmac.digest(self._key, told, "sha256")
