# SPDX-License-Identifier: Apache-2.0
"""Values, curves and paired differences from stored results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ahpa_scale.config.errors import ConfigError, choices
from experiments.analysis_rows import Floor, RecoverabilityMap, Row, Run, read_file
from experiments.statistics import Curves

CONTROL = "none"
ENOUGH_SEEDS = 3
#: Which sign of a difference is an improvement.
BETTER = {
    "fd": -1,
    "kid": -1,
    "accuracy": 1,
    "flow": -1,
    "layout_error": -1,
    "shape_accuracy": 1,
    "texture_distance": -1,
}
_T = TypeVar("_T", bound=Row)


@dataclass(frozen=True)
class Group:
    """All rows of one study on one data set; everything is sorted."""

    study: str
    dataset: str
    runs: tuple[Run, ...]
    floors: tuple[Floor, ...] = ()
    maps: tuple[RecoverabilityMap, ...] = ()
    _cells: Mapping[tuple[str, int, int], Run] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        cells = {(run.variant, run.seed, run.step): run for run in self.runs}
        object.__setattr__(self, "_cells", cells)

    @property
    def title(self) -> str:
        return f"{self.study}, {self.dataset}"

    def variants(self) -> list[str]:
        """The control first, then by name."""
        return sorted({run.variant for run in self.runs}, key=lambda v: (v != CONTROL, v))

    def seeds(self, variant: str | None = None) -> list[int]:
        return sorted({run.seed for run in self.runs if variant in (None, run.variant)})

    def steps(self, variant: str | None = None) -> list[int]:
        return sorted({run.step for run in self.runs if variant in (None, run.variant)})

    def run(self, variant: str, seed: int, step: int) -> Run | None:
        return self._cells.get((variant, seed, step))

    def values(self, variant: str, metric: str, step: int) -> dict[int, float]:
        """Seed -> value at that step, for the seeds that have one."""
        runs = (self.run(variant, seed, step) for seed in self.seeds(variant))
        return {run.seed: run.metrics[metric] for run in runs if run and metric in run.metrics}

    def differences(self, variant: str, against: str, metric: str, step: int) -> dict[int, float]:
        """Seed -> variant minus the other at that step, for the seeds that both have."""
        mine, other = self.values(variant, metric, step), self.values(against, metric, step)
        return {seed: mine[seed] - other[seed] for seed in mine if seed in other}

    def last_compared(self, variant: str, against: str, metric: str) -> int | None:
        """The last step at which enough seeds, or as many as at any step, have both; else None.

        A long study grows seed by seed: the first seed at a new checkpoint decides nothing yet.
        """
        pairs = {step: self.differences(variant, against, metric, step) for step in self.steps()}
        enough = min(ENOUGH_SEEDS, max(map(len, pairs.values()), default=0))
        return max((step for step in pairs if 0 < enough <= len(pairs[step])), default=None)

    def curves(self, variant: str) -> Curves:
        """Seed -> step -> metrics, as `experiments.statistics.steps_ratio` takes them."""
        table: dict[int, dict[int, Mapping[str, float]]] = {}
        for run in self.runs:
            if run.variant == variant:
                table.setdefault(run.seed, {})[run.step] = run.metrics
        return table

    def metrics(self) -> list[str]:
        """The metrics with a known direction that some run has, in a fixed order."""
        present = {metric for run in self.runs for metric in run.metrics}
        return [metric for metric in BETTER if metric in present]


@dataclass(frozen=True)
class Results:
    """Every (study, data set) of the given files, sorted."""

    groups: tuple[Group, ...]

    def group(self, study: str, dataset: str) -> Group:
        """One study on one data set.

        Raises:
            ConfigError: there is no such study or data set.
        """
        for group in self.groups:
            if (group.study, group.dataset) == (study, dataset):
                return group
        names = [group.title for group in self.groups]
        raise ConfigError("results", f"{study}, {dataset}", choices(f"{study}, {dataset}", names))


def load_results(paths: Iterable[str | Path]) -> Results:
    """Read result files.

    Args:
        paths: JSONL files with one study each; a study may be in several files.

    Raises:
        ConfigError: a file cannot be read, or holds no rows or rows of two studies; a row is
            broken, is there twice, or contradicts another; two builds of its data set judged a
            seed.
    """
    rows: list[Row] = []
    for path in sorted({Path(path) for path in paths}):
        rows += read_file(path)
    if not rows:
        raise ConfigError("results", "", "no result files given")
    runs = _unique([r for r in rows if isinstance(r, Run)], _run_key, twice_is_wrong=True)
    # If a study is in several files, each may hold the floors of its data sets.
    floors = _unique([r for r in rows if isinstance(r, Floor)], _floor_key, twice_is_wrong=False)
    maps = _unique([r for r in rows if isinstance(r, RecoverabilityMap)], _run_key, True)
    _check_digests(runs)
    _check_builds(runs)
    groups = []
    for study, dataset in sorted({(row.study, row.dataset) for row in rows}):
        groups.append(
            Group(
                study,
                dataset,
                _of(runs, study, dataset),
                _of(floors, study, dataset),
                _of(maps, study, dataset),
            )
        )
    return Results(tuple(groups))


def _run_key(row: Any) -> tuple[Any, ...]:
    return (row.study, row.dataset, row.variant, row.seed, row.step)


def _floor_key(row: Floor) -> tuple[Any, ...]:
    return (row.study, row.dataset, row.name)


def _unique(
    rows: Sequence[_T], key: Callable[[_T], tuple[Any, ...]], twice_is_wrong: bool
) -> list[_T]:
    seen: dict[tuple[Any, ...], _T] = {}
    for row in rows:
        other = seen.setdefault(key(row), row)
        if other is row:
            continue
        name = "/".join(map(str, key(row)))
        mine, theirs = _content(row), _content(other)
        apart = [k for k in mine if repr(mine[k]) != repr(theirs[k])]
        if apart:
            problem = f"contradicts {other.where} in {', '.join(apart)}"
            raise ConfigError(row.where, name, problem)
        if twice_is_wrong or row.where.rpartition(":")[0] == other.where.rpartition(":")[0]:
            raise ConfigError(row.where, name, f"there already, at {other.where}; remove one")
    return sorted(seen.values(), key=key)


def _content(row: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(row).items() if name != "where"}


def _check_digests(runs: Sequence[Run]) -> None:
    first: dict[tuple[Any, ...], Run] = {}
    for run in runs:
        other = first.setdefault(_run_key(run)[:-1], run)
        if other.digest != run.digest:
            name = "/".join(map(str, _run_key(run)[:-1]))
            problem = f"digest {run.digest} contradicts {other.digest} of {other.where}"
            raise ConfigError(run.where, name, f"{problem}: one cell, two configurations")


def _check_builds(runs: Sequence[Run]) -> None:
    first: dict[tuple[Any, ...], Run] = {}
    for run in runs:
        pair = (run.study, run.dataset, run.seed)
        other = first.setdefault(pair, run)
        if other.build != run.build:
            name = "/".join(map(str, pair))
            problem = f"build {run.build} contradicts {other.build} of {other.where}"
            raise ConfigError(run.where, name, f"{problem}: one seed, judged by two data sets")


def _of(rows: Sequence[_T], study: str, dataset: str) -> tuple[_T, ...]:
    return tuple(r for r in rows if (r.study, r.dataset) == (study, dataset))
