# SPDX-License-Identifier: Apache-2.0
"""`history.jsonl` and `guard.jsonl`: the run's processes, how each ended, and the run's state."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from ahpa_scale.exits import MEANINGS
from ahpa_scale.report.rows import Row, count_of, number_of, text_of

#: Seconds after which a run that has written nothing counts as silent.
QUIET = 900.0
#: Most processes, and most of the guard's lines, that are kept: the newest.
MOST = 100

Kind = Literal["finished", "going", "stopped", "silent", "unknown"]


@dataclass(frozen=True)
class Session:
    """One process of a run, from its first batch to its end.

    Attributes:
        started, ended: seconds since 1970; None if nothing tells.
        first, last: batches trained at its start and at its end.
        exit_code: None: it ended without a word, or is still going.
        reason: the line that it ended with.
        place: engine, number of ranks, device.
        versions: of packages, by name.
    """

    started: float | None
    first: int | None
    ended: float | None = None
    last: int | None = None
    exit_code: int | None = None
    reason: str = ""
    place: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def end(self) -> str:
        """How it ended, in words."""
        if self.exit_code is None:
            return "no word of its end"
        meaning = MEANINGS.get(self.exit_code, "ended by a signal or a library")
        told = f": {self.reason}" if self.reason else ""
        return f"exit code {self.exit_code}, {meaning}{told}"


@dataclass(frozen=True)
class GuardLog:
    """What the guard noted: how many lines of each kind, and the newest lines."""

    counts: dict[str, int]
    newest: list[tuple[float | None, int | None, str, str]]


@dataclass(frozen=True)
class State:
    """Where a run stands: a kind, and words for people."""

    kind: Kind
    text: str


def read_sessions(rows: Iterable[Row]) -> list[Session]:
    """The processes of a run, oldest first."""
    sessions: deque[Session] = deque(maxlen=MOST)
    for row in rows:
        event, time, batch = row.get("event"), number_of(row, "time"), count_of(row, "batch")
        if event == "start":
            sessions.append(Session(time, batch, place=_place(row), versions=_versions(row)))
        elif event == "end" and sessions and sessions[-1].exit_code is None:
            code = row.get("exit_code")
            sessions[-1] = replace(
                sessions[-1],
                ended=time,
                last=batch,
                exit_code=code if type(code) is int else None,
                reason=text_of(row, "reason", 2000),
            )
    return list(sessions)


def read_guard(rows: Iterable[Row]) -> GuardLog:
    """The guard's lines, counted by kind; the newest in full."""
    counts: Counter[str] = Counter()
    newest: deque[tuple[float | None, int | None, str, str]] = deque(maxlen=MOST)
    for row in rows:
        event = text_of(row, "event", 80) or "?"
        counts[event if event in counts or len(counts) < MOST else "other"] += 1
        action = text_of(row, "action", 80)
        newest.append((number_of(row, "time"), count_of(row, "batch"), event, action))
    return GuardLog(dict(counts), list(newest))


def state_of(
    sessions: list[Session], batch: int | None, planned: int | None, quiet: float | None
) -> State:
    """Where a run stands.

    Args:
        sessions: its processes.
        batch: batches trained so far, as far as known.
        planned: batches that it is meant to train; None if that is not given in batches.
        quiet: seconds since it last wrote something; None if that is not known.
    """
    last = sessions[-1] if sessions else None
    if last is not None and last.exit_code:
        return State("stopped", last.end)
    if batch is not None and planned is not None and batch >= planned:
        return State("finished", "finished")
    if last is not None and last.exit_code == 0:
        return State("finished" if planned is None else "stopped", last.end)
    if quiet is None or batch is None:
        return State("unknown", "nothing tells whether it is going")
    if quiet < QUIET:
        return State("going", "going")
    return State("silent", f"silent for {_duration(quiet)}: killed, hanging or lost")


def _place(row: Row) -> str:
    ranks = count_of(row, "ranks")
    shown = "" if ranks is None else f"{ranks} rank{'' if ranks == 1 else 's'}"
    parts = (text_of(row, "engine", 40), shown, text_of(row, "device", 80))
    return ", ".join(part for part in parts if part)


def _versions(row: Row) -> dict[str, str]:
    told = row.get("versions")
    if not isinstance(told, dict):
        return {}
    pairs = list(told.items())[:20]
    return {name[:40]: value[:40] for name, value in pairs if isinstance(value, str)}


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 60:.0f} minutes"
