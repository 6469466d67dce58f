# SPDX-License-Identifier: Apache-2.0
"""``run STUDY.yaml --work DIR``, ``keep`` and ``reproduce``, and ``report ROWS --out DIR``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ahpa_scale.account import settle_account
from ahpa_scale.commands.options import local_arguments
from ahpa_scale.config.errors import exit_on_user_error
from ahpa_scale.errors import UserError
from experiments.study import Cell, Study, load_study

if TYPE_CHECKING:
    from experiments.runner import Places


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; a user's mistake is one line on stderr and exit status 2."""
    settle_account()
    given = _parser().parse_args(arguments)
    status = 0
    with exit_on_user_error():
        local_arguments(given)
        if given.command == "report":
            from experiments.report import report

            print(report(given.results, given.out))
        elif given.command == "run":
            status = _run(given)
        elif given.command == "keep":
            status = _keep(given)
        elif given.command == "reproduce":
            status = _reproduce(given)
        else:
            _work(given)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="train and judge what is left of a study")
    _common(run)
    run.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="worker processes")
    run.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="DATASET/VARIANT/SEED",
        help="narrow the cells; any part may be *",
    )
    run.add_argument("--limit-minutes", type=float, help="stop cleanly after so long")
    run.add_argument("--dry-run", action="store_true", help="check and list the cells")
    run.add_argument(
        "--replace",
        action="store_true",
        help="throw away rows of changed configurations and of other builds of a data set",
    )
    keep = commands.add_parser("keep", help="store the data sets' trained parts in the repository")
    _common(keep)
    keep.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="worker processes")
    again = commands.add_parser("reproduce", help="one cell from scratch, against its stored rows")
    _common(again)
    again.add_argument("cell", metavar="DATASET/VARIANT/SEED", help="which run")
    report = commands.add_parser("report", help="analyse stored rows")
    report.add_argument("results", nargs="+", type=Path, help="rows, and YAML files with verdicts")
    report.add_argument("--out", type=Path, required=True, help="folder to write")
    for name in ("build", "cell"):
        # `run` starts these; they are of no use by hand.
        worker = commands.add_parser(name)
        _common(worker)
        worker.add_argument("--cell", required=True)
        if name == "cell":
            worker.add_argument("--digest", required=True)
    return parser


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", type=Path, help="the study's YAML")
    parser.add_argument("--work", type=Path, required=True, help="folder of data sets and runs")
    parser.add_argument(
        "--results", type=Path, help="folder of the rows [default: experiments/results]"
    )


def _run(given: argparse.Namespace) -> int:
    from experiments.runner import run_study

    return run_study(
        load_study(given.study),
        _places(given),
        jobs=given.jobs,
        only=given.only,
        limit_minutes=given.limit_minutes,
        dry_run=given.dry_run,
        replace=given.replace,
    )


def _keep(given: argparse.Namespace) -> int:
    from experiments.assets import keep
    from experiments.runner import data_folders, run_study

    study, places = load_study(given.study), _places(given)
    status = run_study(study, places, jobs=given.jobs, build_only=True)
    for folder in data_folders(study, places.work) if not status else ():
        for kept in keep(folder):
            print(kept)
    return status


def _reproduce(given: argparse.Namespace) -> int:
    from experiments.reproduce import reproduce
    from experiments.runner import RESULTS

    study = load_study(given.study)
    results = (given.results or RESULTS).absolute()
    comparisons = reproduce(study, _cell(study, given.cell), given.work.absolute(), results)
    if comparisons is None:
        return 1
    print(f"{given.cell}: Frechet distance, and the 95 % interval of one more seed")
    for comparison in comparisons:
        print(comparison.line())
    inside = all(comparison.inside for comparison in comparisons)
    print("reproduced" if inside else "NOT reproduced")
    return 0 if inside else 1


def _places(given: argparse.Namespace) -> Places:
    from experiments.runner import RESULTS, Places

    if given.jobs < 1:
        raise UserError(f"--jobs must be at least 1, not {given.jobs}")
    return Places(given.work.absolute(), (given.results or RESULTS).absolute())


def _work(given: argparse.Namespace) -> None:
    from experiments.runner import Places
    from experiments.worker import build_dataset, run_cell

    study = load_study(given.study)
    cell = _cell(study, given.cell)
    if given.command == "build":
        build_dataset(study, given.work, cell)
    else:
        rows = Places(given.work, given.results).rows(study)
        run_cell(study, given.work, rows, cell, given.digest)


def _cell(study: Study, text: str) -> Cell:
    cells = study.cells([text])
    if len(cells) > 1:
        raise UserError(f"{text} names {len(cells)} runs, and one is wanted: {cells[0]}, say")
    return cells[0]


if __name__ == "__main__":
    sys.exit(main())
