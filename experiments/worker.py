# SPDX-License-Identifier: Apache-2.0
"""What a worker process does: build one data set, or train and judge one cell."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ahpa_scale import storage
from ahpa_scale.checkpoint.find import list_checkpoints
from ahpa_scale.config.checks.static import check_data, read_data_card
from ahpa_scale.config.load import to_yaml
from experiments.cells import Plan, Planner, difference
from experiments.datasets import build
from experiments.grids import grid_name, save_grid
from experiments.rows import ResultFile, Row
from experiments.study import Cell, Study

if TYPE_CHECKING:
    from torch import Tensor

#: Exit status of a worker if another process already runs its cell.
BUSY = 75
TOLD = "told.json"


def build_dataset(study: Study, work: Path, cell: Cell) -> None:
    """Build the data set that a cell needs, unless it is whole.

    Raises:
        ValueError: input that does not fit.
    """
    import torch

    data = Planner(study, work).plan(cell).data
    with _alone(data.root):
        print(f"{data.root.name}: cores to build on: {torch.get_num_threads()}", flush=True)
        build(data, lambda text: print(text, flush=True), floor_count=study.samples.count)


def run_cell(study: Study, work: Path, results: Path, cell: Cell, digest: str) -> None:
    """Train a cell from its newest checkpoint, and append the missing rows.

    Args:
        study: the study.
        work: folder of data sets and runs.
        results: the study's ``.jsonl`` file.
        cell: which one.
        digest: the digest of its rows.

    Raises:
        ValueError: the configuration does not fit the data, or the stored rows are damaged.
    """
    plan = Planner(study, work).plan(cell)
    with _alone(plan.folder):
        file = ResultFile(results)
        missing = study.wanted(cell) - stored(file, cell)
        card = read_data_card(plan.config)
        targets = check_data(plan.config, card)
        _start_anew_where_needed(plan, missing)
        # Imported only now, because torch and Composer take seconds.
        from ahpa_scale.run.build import build_trainer
        from experiments.judge import Judge

        def show(images_N3SS: Tensor) -> None:
            if cell.seed == study.seeds[0]:
                name = grid_name(cell.dataset, cell.variant, study.last)
                save_grid(images_N3SS, results.parent / "samples" / results.stem / name)

        judge = Judge(study, plan, digest, missing, file.append, show)
        trainer = build_trainer(plan.config, card, targets, callbacks=[judge])
        storage.write_text(plan.folder / "config.yaml", to_yaml(plan.config))
        storage.write_text(plan.folder / TOLD, json.dumps(plan.told, sort_keys=True))
        judge.map_what_was_trained(trainer.state)
        if any(step > trainer.state.timestamp.batch.value for _, step in missing):
            trainer.fit()
        trainer.close()


def stored(file: ResultFile, cell: Cell) -> set[tuple[str, int]]:
    """The rows that a cell has: kind and checkpoint."""
    rows = (row for row in file.read() if row["kind"] != "floor" and cell_of(row) == cell)
    return {(row["kind"], row["step"]) for row in rows}


def cell_of(row: Row) -> Cell:
    """The cell that a row of a run belongs to."""
    return Cell(row["dataset"], row["variant"], row["seed"])


def _start_anew_where_needed(plan: Plan, missing: set[tuple[str, int]]) -> None:
    """Remove a run of another configuration, or one that is past a checkpoint without its row.

    A missing map can be drawn later from a checkpoint. A missing row of a run can't, because a
    checkpoint does not hold all of its values.
    """
    told = plan.folder / TOLD
    then = json.loads(told.read_text("utf-8")) if told.exists() else None
    same = difference(then, plan.told) is None
    saved = list_checkpoints(str(plan.folder / "checkpoints"))
    batch = max((checkpoint.batch for checkpoint in saved if checkpoint.problem is None), default=0)
    if same and all(step > batch or (kind, step) == ("map", batch) for kind, step in missing):
        return
    for path in plan.folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.suffix not in (".log", ".lock"):
            path.unlink()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lock a folder, so that two runners started by mistake don't write into one run.

    Raises:
        SystemExit: with status BUSY, if another process holds it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(exist_ok=True)
    file = os.open(folder / "worker.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        print(f"another process is at work in {folder}", flush=True)
        raise SystemExit(BUSY) from None
    try:
        yield
    finally:
        os.close(file)
