# SPDX-License-Identifier: Apache-2.0
"""One cell of a study from scratch, compared with its stored rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from ahpa_scale.errors import UserError
from experiments.analysis import Group, load_results
from experiments.runner import Places, run_study
from experiments.statistics import Bounds, estimate
from experiments.study import Cell, Study

METRIC = "fd"


@dataclass(frozen=True)
class Comparison:
    """One checkpoint of the run and of its repetition.

    Attributes:
        step: batches.
        stored: Frechet distance that the repository holds.
        again: Frechet distance of the repetition.
        interval: contains the Frechet distance of one more run of the variant with 95 %.
    """

    step: int
    stored: float
    again: float
    interval: Bounds

    @property
    def inside(self) -> bool:
        """Whether the repetition lies in the interval."""
        return self.interval[0] <= self.again <= self.interval[1]

    def line(self) -> str:
        """For people."""
        low, high = self.interval
        told = f"step {self.step:6}: {self.again:.4g}, stored {self.stored:.4g}"
        verdict = "inside" if self.inside else "OUTSIDE"
        return f"{told}; {verdict} [{low:.4g}, {high:.4g}]"


def reproduce(study: Study, cell: Cell, work: Path, results: Path) -> list[Comparison] | None:
    """Build the data set, train and judge a cell in a new folder, and compare.

    Args:
        study: the study.
        cell: which run.
        work: new folder for everything that is built.
        results: folder of the stored rows.

    Returns:
        A comparison for every stored checkpoint of the cell; None if the run failed, which a line
        has said.

    Raises:
        UserError: the cell has no stored rows, or its variant has one seed only; the folder is not
            new.
    """
    stored = load_results([results / f"{study.name}.jsonl"]).group(study.name, cell.dataset)
    steps = [step for step in study.checkpoints if stored.run(cell.variant, cell.seed, step)]
    if not steps:
        raise UserError(f"nothing is stored of {cell}")
    intervals = {step: one_more(stored, cell, step) for step in steps}
    if work.exists() and any(work.iterdir()):
        raise UserError(f"{work} is not empty: what lies there could be taken over; take another")
    places = Places(work, work / "results")
    if run_study(study, places, jobs=1, only=[str(cell)]):
        return None
    again = load_results([places.rows(study)]).group(study.name, cell.dataset)
    return [
        Comparison(step, _value(stored, cell, step), _value(again, cell, step), intervals[step])
        for step in steps
    ]


def one_more(stored: Group, cell: Cell, step: int) -> Bounds:
    """Student's prediction interval at 95 % for one more run of the variant.

    Raises:
        UserError: there is one seed only.
    """
    values = list(stored.values(cell.variant, METRIC, step).values())
    summary = estimate(values)
    if summary.student is None:
        raise UserError(f"{cell.dataset}/{cell.variant}: one seed at step {step}, no interval")
    # From the mean's interval to one value's interval: the value's own scatter is added.
    half = (summary.student[1] - summary.mean) * math.sqrt(summary.count + 1)
    return summary.mean - half, summary.mean + half


def _value(group: Group, cell: Cell, step: int) -> float:
    run = group.run(cell.variant, cell.seed, step)
    assert run is not None
    return run.metrics[METRIC]
