# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of every engine, taken up by every engine on 1, 2 and 4 ranks.

    python benchmarks/resume_engines.py [--steps 40] [--ranks 1 2 4] [--engines ddp fsdp2 ...]
        [--saved FOLDER]

A small DiT with AHPA attached is trained with AdamW for half of the steps on two gloo ranks by each
engine, saved, and trained to the end by each engine on each number of ranks. The table shows the
largest relative difference between a loss and the same batch's loss in one uninterrupted run of a
single process. Ends with exit code 1 when a difference is above 1e-4.

With --saved the checkpoints are kept in a folder. A second run, with the Python of another torch,
takes up what the first one saved:

    .venv/bin/python benchmarks/resume_engines.py --saved /tmp/halves
    .venv-new/bin/python benchmarks/resume_engines.py --saved /tmp/halves
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.engine_parity import logged_distance
from benchmarks.ranks import ENGINES, Task, run_tasks

BOUND = 1e-4
SAVED_ON = 2

#: (engine that saved, engine that resumed, its ranks) -> largest relative difference of a loss.
Distances = dict[tuple[str, str, int], float]


def possible(engine: str, ranks: int) -> bool:
    """Whether an engine can run on these ranks: two copies of the model need two ranks."""
    return ranks >= 2 or engine != "hsdp"


def measure(
    engines: Sequence[str], ranks: Sequence[int], steps: int, kept: Path | None = None
) -> Distances:
    """Runs everything and compares.

    Args:
        engines: that save and resume.
        ranks: numbers of ranks to resume on.
        steps: batches of the uninterrupted run.
        kept: folder for the checkpoints; what it already has is not trained again. None: they are
            removed at the end.
    """
    half = steps // 2
    distances: Distances = {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        (straight,) = run_tasks([Task("alone", steps=steps)], 1, folder / "straight")
        saved = {engine: (kept or folder / "saved") / engine / f"ba{half}" for engine in engines}
        halves = [
            Task(engine, steps=half, save=str(checkpoint.parent))
            for engine, checkpoint in saved.items()
            if not checkpoint.exists()
        ]
        if halves:
            run_tasks(halves, SAVED_ON, folder / "halves")
        for count in ranks:
            pairs = [
                (source, target)
                for source in engines
                for target in engines
                if possible(target, count)
            ]
            tasks = [
                Task(target, steps=steps, start=str(saved[source])) for source, target in pairs
            ]
            results = run_tasks(tasks, count, folder / f"on{count}")
            for (source, target), result in zip(pairs, results, strict=True):
                told = straight["losses"][half:]
                distances[source, target, count] = logged_distance(told, result["losses"])
    return distances


def table(distances: Distances, engines: Iterable[str], ranks: Sequence[int]) -> str:
    """Rows: engine that saved; columns: engine that resumed, and its number of ranks."""
    columns = [(target, count) for target in engines for count in ranks if possible(target, count)]
    lines = [
        "| saved by | " + " | ".join(f"{target} {count}" for target, count in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for source in engines:
        numbers = " | ".join(f"{distances[source, target, count]:.0e}" for target, count in columns)
        lines.append(f"| {source} {SAVED_ON} | {numbers} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--saved", type=Path, metavar="FOLDER")
    given = parser.parse_args(arguments)
    distances = measure(given.engines, given.ranks, given.steps, given.saved)
    print(table(distances, given.engines, given.ranks))
    worst = max(distances.values())
    print(f"\ntorch {torch.__version__}; largest: {worst:.1e}, allowed: {BOUND:.0e}")
    return 0 if worst <= BOUND else 1


if __name__ == "__main__":
    raise SystemExit(main())
