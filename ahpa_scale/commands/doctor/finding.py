# SPDX-License-Identifier: Apache-2.0
"""What the doctor finds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """How bad it is."""

    OK = "ok"
    #: Training works. It may be slow or meet a limit.
    NOTE = "note"
    #: Training fails.
    WRONG = "WRONG"


@dataclass(frozen=True)
class Finding:
    """One line.

    Attributes:
        subject: what was looked at, in a word or two.
        verdict: how it is.
        text: what was seen and, unless all is well, what to do.
    """

    subject: str
    verdict: Verdict
    text: str

    def __str__(self) -> str:
        return f"{self.verdict.value:5}  {self.subject}: {self.text}"


def ok(subject: str, text: str) -> Finding:
    """A finding that asks for nothing."""
    return Finding(subject, Verdict.OK, text)


def note(subject: str, text: str) -> Finding:
    """A finding that may matter."""
    return Finding(subject, Verdict.NOTE, text)


def wrong(subject: str, text: str) -> Finding:
    """A finding that keeps a run from training."""
    return Finding(subject, Verdict.WRONG, text)
