# SPDX-License-Identifier: Apache-2.0
"""What came of each case, as JSON and as a table."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass
class Result:
    """What came of one case.

    Attributes:
        code: the launcher's exit code; None where it did not end in time.
        seconds: from the error to the end of all.
        line: the first line that says what is wrong.
        problems: what is not as it should be; none: it passed.
    """

    code: int | None
    seconds: float
    line: str
    problems: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.problems


def write(path: Path, results: Mapping[str, Result], seed: int) -> None:
    """All results so far, as JSON beside a table in Markdown."""
    found = {name: {"passed": one.passed, **asdict(one)} for name, one in results.items()}
    path.write_text(json.dumps({"seed": seed, "results": found}, indent=1) + "\n", "utf-8")
    rows = ["| case | | code | seconds | first line, or what is wrong |", "|---|---|---|---|---|"]
    for name, one in results.items():
        text = "; ".join(one.problems) or one.line
        verdict = "ok" if one.passed else "FAULT"
        shown = text.replace("|", "\\|")[:160]
        rows.append(f"| {name} | {verdict} | {one.code} | {one.seconds:.0f} | {shown} |")
    path.with_suffix(".md").write_text("\n".join(rows) + "\n", "utf-8")


def left(begun: float, done: int, count: int) -> str:
    """How far it is and how long the rest takes, at the pace so far."""
    if not done:
        return f"1/{count}"
    rest = (time.monotonic() - begun) / done * (count - done)
    return f"{done + 1}/{count}, about {rest / 60:.0f} min left"
