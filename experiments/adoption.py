# SPDX-License-Identifier: Apache-2.0
"""Cells that another study has run already.

Studies share their controls. The same configuration, seed and build of the data set give the same
result, so its rows are taken over instead of computed again.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from experiments.builds import build_of
from experiments.cells import Plan
from experiments.rows import ResultFile, Row
from experiments.study import Study


def adopt(study: Study, plans: Iterable[Plan], file: ResultFile) -> int:
    """Take over the judged checkpoints that the other files of the folder hold.

    Maps are not taken over, because their levels and pictures are the study's own settings.

    Args:
        study: the study.
        plans: cells whose data sets are built.
        file: the study's rows.

    Returns:
        Rows that were added.
    """
    others = _others(file.path)
    added = 0
    for plan in plans:
        known = others.get((plan.digest, plan.cell.seed, build_of(plan.data)), {})
        for step in study.checkpoints:
            if step in known:
                cell = {"dataset": plan.cell.dataset, "variant": plan.cell.variant}
                added += file.append({**known[step], **cell, "study": study.name})
    return added


def _others(path: Path) -> dict[tuple[str, int, str], dict[int, Row]]:
    """Digest, seed and build -> checkpoint -> row, of every other study in the folder."""
    rows: dict[tuple[str, int, str], dict[int, Row]] = {}
    for other in sorted(path.parent.glob("*.jsonl")):
        if other == path:
            continue
        for row in ResultFile(other).read():
            if row["kind"] == "run" and "build" in row:
                key = (row["digest"], row["seed"], row["build"])
                rows.setdefault(key, {})[row["step"]] = row
    return rows
