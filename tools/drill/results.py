# SPDX-License-Identifier: Apache-2.0
"""The result of each case, as JSON and as a table."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median


@dataclass
class Result:
    """The result of one case.

    Attributes:
        code: the launcher's exit code; None where it did not end in time.
        seconds: from the error to the end of the last process.
        line: the first line that says what is wrong.
        problems: what went wrong; empty: the case passed.
        told: seconds from the error to that line; None if either moment is unknown.
    """

    code: int | None
    seconds: float
    line: str
    problems: list[str] = field(default_factory=list)
    told: float | None = None

    @property
    def passed(self) -> bool:
        return not self.problems


def write(path: Path, results: Mapping[str, Result], seed: int) -> None:
    """All results so far, as JSON beside a table in Markdown."""
    cases = {name: {"passed": result.passed, **asdict(result)} for name, result in results.items()}
    path.write_text(json.dumps({"seed": seed, "results": cases}, indent=1) + "\n", "utf-8")
    rows = ["| case | | code | s to the line | s to the end | first line, or what is wrong |"]
    rows += ["|---|---|---|---|---|---|"]
    for name, result in results.items():
        text = "; ".join(result.problems) or result.line
        verdict = "ok" if result.passed else "FAULT"
        shown = text.replace("|", "\\|")[:160]
        told = "" if result.told is None else f"{result.told:.1f}"
        rows.append(
            f"| {name} | {verdict} | {result.code} | {told} | {result.seconds:.1f} | {shown} |"
        )
    rows += figures(results)
    path.with_suffix(".md").write_text("\n".join(rows) + "\n", "utf-8")


def figures(results: Mapping[str, Result]) -> list[str]:
    """Median and maximum of the seconds after an error, over the cases in which both are known."""
    timed = [result for result in results.values() if result.told is not None]
    if not timed:
        return []
    line = [result.told for result in timed if result.told is not None]
    end = [result.seconds for result in timed]
    return [
        f"| {name} of {len(timed)} | | | {pick(line):.1f} | {pick(end):.1f} | |"
        for name, pick in (("median", median), ("maximum", max))
    ]


def left(begun: float, done: int, count: int) -> str:
    """How many cases are done, and how long the rest takes at the pace so far."""
    if not done:
        return f"1/{count}"
    rest = (time.monotonic() - begun) / done * (count - done)
    return f"{done + 1}/{count}, about {rest / 60:.0f} min left"
