# SPDX-License-Identifier: Apache-2.0
"""Authentic datagrams: a header, a body and an HMAC-SHA256 over both under the job's key.

Each sender counts its datagrams, so that one that was recorded is worth nothing a second time.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass
from typing import Literal

#: Bytes of the largest datagram that is read; a message takes some hundred.
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
        secret: that the ranks alone know; empty where there is none.
        token: that was drawn for this start of the job, so that no two have the same key.
    """
    return hmac.digest(secret.encode(), f"ahpa_scale watch {token}".encode(), "sha256")


@dataclass(frozen=True)
class Opened:
    """What a datagram held that came from this job.

    Attributes:
        rank: that sent a beat, or that a reply is for.
        number: of the datagram among those of its sender, from 1.
        body: the message.
    """

    rank: int
    number: int
    body: bytes


class Seal:
    """Closes messages of this job, and opens them.

    Args:
        key: of the job.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._sent = 0

    def close(self, kind: Kind, rank: int, body: bytes) -> bytes:
        """A datagram that says who it is from, or for."""
        self._sent += 1
        told = _HEADER.pack(_MAGIC, _KINDS[kind], rank, self._sent) + body
        return told + self._tag(told)

    def open(self, kind: Kind, datagram: bytes) -> Opened | None:
        """What is in a datagram; None for one of another job, kind or origin."""
        if not _HEADER.size + _TAG < len(datagram) <= MOST_BYTES:
            return None
        told, tag = datagram[:-_TAG], datagram[-_TAG:]
        magic, mark, rank, number = _HEADER.unpack_from(told)
        # What costs least comes first: a flood is for the most part no message of ours at all.
        if magic != _MAGIC or mark != _KINDS[kind]:
            return None
        if not hmac.compare_digest(tag, self._tag(told)):
            return None
        return Opened(rank, number, told[_HEADER.size :])

    def _tag(self, told: bytes) -> bytes:
        return hmac.digest(self._key, told, "sha256")
