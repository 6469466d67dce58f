# SPDX-License-Identifier: Apache-2.0
"""Run a study: check every cell, build missing data sets, train and judge cells without rows."""

from __future__ import annotations

import filecmp
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ahpa_scale import storage
from ahpa_scale.config.checks.static import check_data, read_data_card
from ahpa_scale.config.load import ConfigError
from ahpa_scale.errors import UserError
from experiments.adoption import adopt
from experiments.builds import strangers
from experiments.cells import Plan, Planner, difference
from experiments.datasets import REAL_GRID
from experiments.grids import real_grid_name
from experiments.pool import Task, last_line, run_tasks
from experiments.progress import Progress, every
from experiments.rows import ResultFile, key_of
from experiments.study import Cell, Study
from experiments.worker import BUSY, cell_of, stored

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Places:
    """Where a study lives.

    Attributes:
        work: data sets, runs and logs.
        results: folder of the rows, the configurations and the samples.
    """

    work: Path
    results: Path

    def rows(self, study: Study) -> Path:
        """The study's rows."""
        return self.results / f"{study.name}.jsonl"

    def configurations(self, study: Study) -> Path:
        """What each digest in the rows stands for."""
        return self.results / f"{study.name}.configs.json"


def run_study(
    study: Study,
    places: Places,
    *,
    jobs: int,
    only: Sequence[str] = (),
    limit_minutes: float | None = None,
    dry_run: bool = False,
    replace: bool = False,
    build_only: bool = False,
) -> int:
    """Run the cells of a study that are not complete.

    Args:
        study: the study.
        places: where.
        jobs: worker processes.
        only: patterns ``dataset/variant/seed`` that narrow the cells.
        limit_minutes: stop cleanly after this time.
        dry_run: check and list the cells, nothing else.
        replace: throw away the stored rows of cells whose configuration has changed, and the rows
            that another build of the data set judged, if they are of the same data set and seed as
            a cell to be run.
        build_only: build the data sets, and train nothing.

    Returns:
        0: all rows are there, or the limit came first; 1: a worker failed.

    Raises:
        UserError: a mistake in the study, a cell or the stored rows, in one line.
    """
    deadline = None if limit_minutes is None else time.monotonic() + 60 * limit_minutes
    planner = Planner(study, places.work)
    plans = [planner.plan(cell) for cell in study.cells(only)]
    file = ResultFile(places.rows(study))
    digests = _settle(study, plans, places, file, replace=replace, dry_run=dry_run)
    left = [plan for plan in plans if study.wanted(plan.cell) - stored(file, plan.cell)]
    _say(f"{study.name}: {len(plans)} cells, {len(plans) - len(left)} complete")
    if dry_run:
        for plan in plans:
            state = "to run" if plan in left else "complete"
            _say(f"{plan.cell}  digest {digests[plan.cell]}  {state}")
        return 0
    if not _build_data(study, plans, places, jobs, deadline):
        return 1
    _write_floors(plans, file)
    _show_real(study, plans, places)
    _check_against_data(study, plans)
    if build_only:
        return 0
    changed = _expel_strangers(file, left, replace)
    if taken := adopt(study, left, file):
        _say(f"{study.name}: rows taken over from other studies: {taken}")
    if changed or taken:
        left = [plan for plan in plans if study.wanted(plan.cell) - stored(file, plan.cell)]
    return _train(study, left, places, jobs, deadline, digests)


def data_folders(study: Study, work: Path) -> list[Path]:
    """The folders of the data sets that a study's cells use."""
    planner = Planner(study, work)
    return list(dict.fromkeys(planner.plan(cell).data.root for cell in study.cells()))


def _settle(
    study: Study,
    plans: Iterable[Plan],
    places: Places,
    file: ResultFile,
    *,
    replace: bool,
    dry_run: bool,
) -> dict[Cell, str]:
    """The digest that each cell's rows carry; rows of another configuration are refused."""
    known = _read_json(places.configurations(study))
    by_cell: dict[Cell, dict[tuple[Any, ...], str]] = {}
    for row in file.read():
        if row["kind"] != "floor":
            by_cell.setdefault(cell_of(row), {})[key_of(row)] = row["digest"]
    digests, unwanted = {}, set()
    # One digest per variant and data set: that of the first seed with rows.
    adopted: dict[tuple[str, str], str] = {}
    for plan in plans:
        cell, family = plan.cell, (plan.cell.dataset, plan.cell.variant)
        for digest in dict.fromkeys(by_cell.get(cell, {}).values()):
            changed = difference(known.get(digest), plan.told)
            if changed is None:
                adopted.setdefault(family, digest)
            elif replace:
                unwanted |= {key for key, own in by_cell[cell].items() if own == digest}
            else:
                raise UserError(
                    f"{file.path}: the rows of {cell} were made with another configuration: "
                    f"{changed}; set it back, or pass --replace to throw them away"
                )
        digests[cell] = adopted.setdefault(family, plan.digest)
        known.setdefault(digests[cell], plan.told)
    if not dry_run:
        file.remove(unwanted)
        with file.locked():
            # Another runner of this study may have added digests since.
            known = _read_json(places.configurations(study)) | known
            text = json.dumps(known, indent=1, sort_keys=True) + "\n"
            storage.write_text(places.configurations(study), text)
    return digests


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return content


def _build_data(
    study: Study, plans: Sequence[Plan], places: Places, jobs: int, deadline: float | None
) -> bool:
    """Build data sets in parallel; False if one failed or time ran out."""
    wanted = {plan.data.root: plan for plan in plans if not plan.data.whole}
    slots = min(jobs, max(1, len(wanted)))
    # Few data sets share the cores that `jobs` training runs would use.
    threads = max(1, jobs // slots)
    tasks = [
        Task(
            root.name,
            _words("build", study, places, plan.cell),
            root.parent / f"{root.name}.log",
            threads,
        )
        for root, plan in wanted.items()
    ]
    if tasks:
        _say(f"building {', '.join(task.name for task in tasks)}; see {places.work / 'data'}/*.log")
    logs = {task.name: task.log for task in tasks}

    def tell(running: list[str]) -> None:
        for name in running:
            _say(f"{name}: {last_line(logs[name])}")

    outcome = run_tasks(tasks, slots, deadline=deadline, tick=every(tell), ended=_epitaph)
    if outcome.left:
        _say("time is up while data sets are built; the same command goes on")
    return not (outcome.failed or outcome.left)


def _write_floors(plans: Iterable[Plan], file: ResultFile) -> None:
    for plan in plans:
        for name, metrics in plan.data.facts["floors"].items():
            row = {"kind": "floor", "dataset": plan.cell.dataset, "name": name}
            file.append({**row, "metrics": metrics})


def _show_real(study: Study, plans: Iterable[Plan], places: Places) -> None:
    """Put the real pictures beside the samples, so that people can compare them."""
    for plan in plans:
        made = plan.data.root / REAL_GRID
        shown = places.results / "samples" / study.name / real_grid_name(plan.cell.dataset)
        # A data set that an earlier version built has none.
        if made.exists() and not (shown.exists() and filecmp.cmp(made, shown, shallow=False)):
            storage.write_bytes(shown, made.read_bytes())


def _expel_strangers(file: ResultFile, left: Sequence[Plan], replace: bool) -> int:
    """Remove rows that another build judged, of data sets and seeds to be run; returns how many.

    Raises:
        UserError: there are such rows, and `replace` is False.
    """
    foreign = strangers(file.read(), left)
    if foreign and not replace:
        row = next(iter(foreign.values()))
        raise UserError(
            f"{file.path}: the rows of {row['dataset']}, seed {row['seed']}, were judged by "
            "another build of its autoencoder and judges (another machine?) and would not compare; "
            "take seeds without rows, or pass --replace to throw these away"
        )
    return file.remove(set(foreign))


def _check_against_data(study: Study, plans: Iterable[Plan]) -> None:
    for plan in plans:
        try:
            check_data(plan.config, read_data_card(plan.config))
        except ConfigError as error:
            text = f"{error.key}: {error.problem}"
            raise UserError(f"{study.path}: cell {plan.cell}: {text}") from None


def _train(
    study: Study,
    plans: Sequence[Plan],
    places: Places,
    jobs: int,
    deadline: float | None,
    digests: Mapping[Cell, str],
) -> int:
    tasks = [
        Task(
            str(plan.cell),
            (*_words("cell", study, places, plan.cell), "--digest", digests[plan.cell]),
            plan.folder / "worker.log",
        )
        for plan in plans
    ]
    progress = Progress({str(plan.cell): plan.folder for plan in plans}, study.last, _say)

    def ended(task: Task, status: int) -> None:
        progress.ended(task.name)
        _epitaph(task, status)

    outcome = run_tasks(tasks, jobs, deadline=deadline, tick=progress.tick, ended=ended)
    if outcome.left:
        _say(f"time is up: {len(outcome.left)} cells are left; the same command goes on")
    _say(f"{study.name}: rows in {places.rows(study)}")
    return 1 if outcome.failed else 0


def _words(command: str, study: Study, places: Places, cell: Cell) -> tuple[str, ...]:
    return (
        command,
        str(study.path),
        "--work",
        str(places.work),
        "--results",
        str(places.results),
        "--cell",
        str(cell),
    )


def _epitaph(task: Task, status: int) -> None:
    if status == BUSY:
        _say(f"{task.name}: another process is at it")
    elif status:
        _say(f"{task.name}: failed (status {status}): {last_line(task.log)}; see {task.log}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
