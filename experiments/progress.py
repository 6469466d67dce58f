# SPDX-License-Identifier: Apache-2.0
"""How far a study is: cells done, rate, time left."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ahpa_scale.run_files import METRICS_FILE

_EVERY_SECONDS = 30.0


class Progress:
    """Prints a line at intervals, and one whenever a cell ends.

    Args:
        folders: cell -> folder of its run.
        steps: batches of a whole run.
        say: takes a line.
        every: seconds between two lines.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        steps: int,
        say: Callable[[str], None],
        every: float = _EVERY_SECONDS,
    ) -> None:
        self.folders, self.steps, self.say, self.every = folders, steps, say, every
        self._begun = self._told = time.monotonic()
        self._at_start = {name: last_batch(folder) for name, folder in folders.items()}
        self._finished: set[str] = set()
        self._running: list[str] = []

    def ended(self, name: str) -> None:
        """Called when a cell has ended."""
        self._finished.add(name)
        self.say(self.line())

    def tick(self, running: list[str]) -> None:
        """Called often; prints a line if it is time."""
        self._running = running
        if time.monotonic() - self._told >= self.every:
            self._told = time.monotonic()
            self.say(self.line())

    def line(self) -> str:
        """``cells 3/12 done, 14.2 steps/s, 48 min left; a 800/3200, b 400/3200``."""
        batches = {name: last_batch(folder) for name, folder in self.folders.items()}
        made = sum(max(0, batches[name] - self._at_start[name]) for name in self.folders)
        todo = sum(
            max(0, self.steps - batches[name])
            for name in self.folders
            if name not in self._finished
        )
        rate = made / max(time.monotonic() - self._begun, 1e-9)
        left = f"{todo / rate / 60:.0f} min left" if made else "time left unknown"
        running = [name for name in self._running if name not in self._finished]
        now = ", ".join(f"{name} {batches[name]}/{self.steps}" for name in running)
        head = f"cells {len(self._finished)}/{len(self.folders)} done, {rate:.1f} steps/s, {left}"
        return f"{head}; {now}" if now else head


def every(
    report: Callable[[list[str]], object], seconds: float = _EVERY_SECONDS
) -> Callable[[list[str]], None]:
    """A function that calls `report` at most once in `seconds`."""
    told = time.monotonic()

    def tick(running: list[str]) -> None:
        nonlocal told
        if time.monotonic() - told >= seconds:
            told = time.monotonic()
            report(running)

    return tick


def last_batch(folder: Path) -> int:
    """The newest batch that a run has logged; 0 before the first."""
    path = folder / METRICS_FILE
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 20_000))
        lines = file.read().split(b"\n")
    for line in reversed(lines):
        try:
            return int(json.loads(line)["batch"])
        except (ValueError, KeyError, TypeError):
            continue
    return 0
