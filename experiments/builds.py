# SPDX-License-Identifier: Apache-2.0
"""Which build of a data set judged a row.

A recipe's autoencoder and judges are trained anew if the repository doesn't keep them. On another
kind of processor they come out a little different, and so do all scores. So two variants may be
compared only if one build judged both.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from experiments.assets import trained_digest
from experiments.cells import Plan
from experiments.datasets import DataFolder
from experiments.rows import Row, key_of


def build_of(data: DataFolder) -> str:
    """8 hex digits that name this build of a whole data set, taken from its trained parts."""
    return trained_digest(data.root)


def strangers(rows: Iterable[Row], plans: Iterable[Plan]) -> dict[tuple[Any, ...], Row]:
    """Key -> row, for rows of these plans' data sets and seeds that another build judged."""
    builds: dict[tuple[Any, Any], str] = {
        (plan.cell.dataset, plan.cell.seed): build_of(plan.data) for plan in plans
    }
    foreign = {}
    for row in rows:
        here = builds.get((row["dataset"], row.get("seed")))
        if here is not None and row.get("build") != here:
            foreign[key_of(row)] = row
    return foreign
