# SPDX-License-Identifier: Apache-2.0
"""Rank 0's list of all ranks: when each was last heard, and what follows from it.

Uses no sockets or clocks: times come in as arguments, in seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ahpa_scale.watch.messages import Beat, Verdict

MOST_NAMES = 8
FIREWALL = "open it between the nodes, name another with watch.port, or set watch.enabled=false"


@dataclass
class _Entry:
    """One rank's last beat, and when it came."""

    beat: Beat
    heard: float


class Roll:
    """Judges the ranks by their beats.

    Args:
        world: number of ranks in the job.
        per_node: ranks on each node.
        silence: seconds without a beat after which a rank counts as gone.
        hang: seconds without progress of any rank after which the job counts as stuck; None: never.
        interval: seconds between the beats of one rank.
        port: UDP port, named in messages.
    """

    def __init__(
        self,
        world: int,
        per_node: int,
        *,
        silence: float,
        hang: float | None,
        interval: float,
        port: int,
    ) -> None:
        self.world, self.per_node, self.port = world, per_node, port
        self.silence, self.hang, self.interval = silence, hang, interval
        self._entries: dict[int, _Entry] = {}
        self._progress = 0.0
        self._met: float | None = None
        self._stops: dict[int, float] = {}

    def heard(self, beat: Beat, now: float) -> None:
        """Records a beat of this job."""
        known = self._entries.get(beat.rank)
        if known is None or beat.count > known.beat.count:
            self._progress = now
        if beat.state == "stopped":
            self._stops.setdefault(beat.rank, now)
        self._entries[beat.rank] = _Entry(beat, now)

    def met(self, now: float) -> None:
        """Notes that the ranks have met. From now on all must be heard."""
        self._met = now if self._met is None else self._met

    def through(self, states: Iterable[str]) -> bool:
        """Whether every rank except rank 0 has been heard and is in one of `states`."""
        wanted = set(states)
        others = [entry for rank, entry in self._entries.items() if rank != 0]
        return len(others) == self.world - 1 and all(e.beat.state in wanted for e in others)

    def judge(self, now: float) -> Verdict | None:
        """What has gone wrong, by the most informative rule; None while all is well."""
        return (
            self._failed()
            or self._stopped(now)
            or self._silent(now)
            or self._absent(now)
            or self._stuck(now)
        )

    def _present(self) -> list[_Entry]:
        gone = ("left", "ended")
        return [e for _, e in sorted(self._entries.items()) if e.beat.state not in gone]

    def _failed(self) -> Verdict | None:
        for entry in self._present():
            beat = entry.beat
            if beat.state == "failed":
                return Verdict(f"{beat.name} {beat.text}", beat.code, (beat.rank,), "own")
        return None

    def _stopped(self, now: float) -> Verdict | None:
        """Launchers stop the ranks beside a killed one. Then the verdict names the killed one."""
        for rank, since in self._stops.items():
            if now - since < 3 * self.interval:
                continue
            beat = self._entries[rank].beat
            beside = [e for e in self._present() if e.beat.node == beat.node]
            killed = [e for e in beside if now - e.heard > 2.5 * self.interval]
            if killed:
                return self._silence_of(killed, now)
            line = f"{beat.name} was stopped by {beat.text}; last seen at {beat.stage}"
            return Verdict(line, ranks=(rank,), kind="own")
        return None

    def _silent(self, now: float) -> Verdict | None:
        ages = [(now - entry.heard, entry) for entry in self._present()]
        if not ages or max(age for age, _ in ages) < self.silence:
            return None
        # Ranks of one host fall silent almost together, so they are named together.
        late = self.silence - 3 * self.interval
        return self._silence_of([entry for age, entry in ages if age > late], now)

    def _silence_of(self, entries: Sequence[_Entry], now: float) -> Verdict:
        seconds = max(now - entry.heard for entry in entries)
        last = min((entry.beat for entry in entries), key=lambda beat: beat.count)
        has = "has" if len(entries) == 1 else "have"
        return Verdict(
            f"{_names([e.beat for e in entries])} {has} not been heard from for {seconds:.0f} s; "
            f"last seen at {last.stage}",
            ranks=tuple(entry.beat.rank for entry in entries),
        )

    def _absent(self, now: float) -> Verdict | None:
        if self._met is None or now - self._met < self.silence:
            return None
        absent = [rank for rank in range(self.world) if rank not in self._entries]
        if not absent:
            return None
        nodes = sorted({rank // self.per_node for rank in absent})
        return Verdict(
            f"{_numbers('rank', absent)} ({_numbers('node', nodes)}) joined the job and can't be "
            f"heard on UDP port {self.port} of rank 0's host; {FIREWALL}",
            ranks=tuple(absent),
        )

    def _stuck(self, now: float) -> Verdict | None:
        if self.hang is None or now - self._progress < self.hang:
            return None
        absent = [rank for rank in range(self.world) if rank not in self._entries]
        beats = [entry.beat for entry in self._present()]
        least = min((beat.count for beat in beats), default=0)
        behind = [beat for beat in beats if beat.count == least]
        where = f"{_names(behind)}, at {behind[0].stage}" if behind else "all have left"
        if absent:
            where = f"{_numbers('rank', absent)}, never heard from"
        return Verdict(
            f"no rank has made progress for {now - self._progress:.0f} s; furthest behind: {where}",
            ranks=tuple(absent or [beat.rank for beat in behind]),
            kind="stuck",
        )


def _names(beats: Sequence[Beat]) -> str:
    """``rank 1 on host-b (node 1); ranks 2, 3 on host-c (node 2)``."""
    hosts: dict[tuple[str, int], list[int]] = {}
    for beat in beats:
        hosts.setdefault((beat.host, beat.node), []).append(beat.rank)
    return "; ".join(
        f"{_numbers('rank', ranks)} on {host} (node {node})"
        for (host, node), ranks in sorted(hosts.items(), key=lambda item: item[1])
    )


def _numbers(what: str, numbers: Sequence[int]) -> str:
    shown = ", ".join(str(number) for number in numbers[:MOST_NAMES])
    more = f" and {len(numbers) - MOST_NAMES} more" if len(numbers) > MOST_NAMES else ""
    return f"{what}{'s' if len(numbers) > 1 else ''} {shown}{more}"
