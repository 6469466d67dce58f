# SPDX-License-Identifier: Apache-2.0
"""`evaluation.jsonl`: figures of checkpoints, the best one, and how soon another run reaches it.

Every number of a row counts as a figure, so new ones are drawn as they come.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ahpa_scale.report.rows import Faults, Row, count_of, number_of, text_of
from ahpa_scale.run_files import EVALUATION_FILE

_NO_FIGURES = ("batch", "num_images", "epoch")
_INTERVAL, _DEVIATION = "_interval", "_std"
#: Figures in the order in which they are shown; others follow by name.
ORDER = ("flow", "fid", "sfid", "is", "precision", "recall", "kid")
_TITLES = {
    "flow": "held-out loss",
    "fid": "FID",
    "sfid": "sFID",
    "is": "Inception Score",
    "kid": "KID",
}
#: Figures of which more is better.
_MORE = {"is", "isc", "inception_score", "precision", "recall", "density", "coverage"}
_MOST_FIGURES = 40


@dataclass(frozen=True)
class Evaluated:
    """One checkpoint's figures.

    Attributes:
        batch: batches trained.
        figures: by name; None for a number that was not finite.
        intervals: lower and upper end, for those that have one.
        flow_T: held-out loss of each bin of the noise level.
    """

    batch: int
    figures: dict[str, float | None]
    intervals: dict[str, tuple[float, float]]
    flow_T: list[float | None]


@dataclass
class Evaluation:
    """The rows of one file, all made with the same settings.

    Attributes:
        where: the file.
        run_name: of the run that was evaluated; empty if nothing tells.
        settings: what the figures were made with.
        rows: oldest first.
    """

    where: str
    run_name: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    rows: list[Evaluated] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Names of the figures that some row has, in the order in which they are shown."""
        present = {
            name for row in self.rows for name, value in row.figures.items() if value is not None
        }
        known = [name for name in ORDER if name in present]
        return [*known, *sorted(present - set(known))][:_MOST_FIGURES]

    def best(self, name: str) -> tuple[int, float] | None:
        """The batch with the best value of a figure, and that value; None if there is none."""
        known = [
            (row.batch, value) for row in self.rows if (value := row.figures.get(name)) is not None
        ]
        sign = -1 if name in _MORE else 1
        return min(known, key=lambda pair: sign * pair[1]) if known else None


@dataclass(frozen=True)
class Race:
    """How soon another run has a figure as good as a first run's best.

    Attributes:
        figure: its name.
        target: the first run's best value, which it has at `first_batch`.
        batch: first evaluated batch of the other run that is at least as good; None if none is.
        best: the other run's own best.
    """

    figure: str
    target: float
    first_batch: int
    batch: int | None
    best: float

    @property
    def ratio(self) -> float | None:
        """The other run's batches as a share of the first one's."""
        if self.batch is None or self.first_batch == 0:
            return None
        return self.batch / self.first_batch


def title_of(name: str) -> str:
    """A figure's name for people."""
    return _TITLES.get(name, name.replace("_", " "))


def read_evaluation(rows: Iterable[Row], where: str, faults: Faults) -> Evaluation:
    """The rows of a file; damaged ones are left out and counted."""
    told = Evaluation(where)
    by_batch: dict[int, Evaluated] = {}
    for row in rows:
        batch = count_of(row, "batch")
        if batch is None:
            faults.skip(EVALUATION_FILE, "a row without a batch")
            continue
        settings = row.get("settings")
        if isinstance(settings, dict) and settings:
            told.settings = settings
            told.run_name = text_of(settings, "run_name")
        by_batch[batch] = _evaluated(row, batch)
    told.rows = [by_batch[batch] for batch in sorted(by_batch)]
    return told


def differing(first: Evaluation, second: Evaluation) -> list[str]:
    """Names of settings by which two evaluations can't be compared."""
    names = {*first.settings, *second.settings} - {"run_name"}
    return sorted(
        name[:40] for name in names if first.settings.get(name) != second.settings.get(name)
    )


def races(first: Evaluation, second: Evaluation) -> list[Race]:
    """How soon `second` is as good as the best of `first`, for each figure that both have."""
    found = []
    for name in first.names:
        target, own = first.best(name), second.best(name)
        if target is None or own is None:
            continue
        found.append(
            Race(name, target[1], target[0], _reached(second.rows, name, target[1]), own[1])
        )
    return found


def _reached(rows: Sequence[Evaluated], name: str, target: float) -> int | None:
    for row in rows:
        value = row.figures.get(name)
        if value is not None and (value >= target if name in _MORE else value <= target):
            return row.batch
    return None


def _evaluated(row: Row, batch: int) -> Evaluated:
    figures: dict[str, float | None] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for name in row:
        if name in _NO_FIGURES or name.endswith((_INTERVAL, _DEVIATION)):
            continue
        value = number_of(row, name)
        if value is None:
            continue
        figures[name[:80]] = value
        ends = _ends(row, name, value)
        if ends is not None:
            intervals[name[:80]] = ends
    bins = row.get("flow_t")
    flow_T = [number_of({"loss": loss}, "loss") for loss in bins] if isinstance(bins, list) else []
    return Evaluated(batch, figures, intervals, flow_T[:200])


def _ends(row: Row, name: str, value: float) -> tuple[float, float] | None:
    told = row.get(f"{name}{_INTERVAL}")
    if isinstance(told, list) and len(told) == 2:
        low, high = (number_of({"end": end}, "end") for end in told)
        if low is not None and high is not None and low <= high:
            return low, high
    deviation = number_of(row, f"{name}{_DEVIATION}")
    return None if deviation is None else (value - deviation, value + deviation)
