# SPDX-License-Identifier: Apache-2.0
"""Every engine against a single process: the same weights, averages, gradient norms and losses.

    python benchmarks/engine_parity.py [--ranks 2] [--steps 20] [--engines ddp fsdp2 ...]

A small DiT with AHPA attached is trained by each engine over gloo ranks, two micro-batches a rank,
with SGD and with AdamW, clipped and not, from one initialisation on one order of samples. A row
per run shows the largest distance of a weight tensor from the single process's, relative to its
norm; the same for the averages; the largest relative difference of logged gradient norms and of
losses; and the largest difference of latents drawn from the averages. Ends with exit code 1 when a
bound is broken: the weights' is 1e-5 with SGD and 1e-4 with AdamW, the averages' 1e-6.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.ranks import ENGINES, Task, run_tasks

OPTIMIZERS = ("sgd", "adamw")
BOUNDS = {"sgd": 1e-5, "adamw": 1e-4}
AVERAGE_BOUND, LOG_BOUND, SAMPLE_BOUND = 1e-6, 1e-4, 1e-3


@dataclass(frozen=True)
class Row:
    """One engine compared with the single process."""

    task: Task
    weights: float
    average: float
    norms: float
    losses: float
    samples: float
    worst: str

    @property
    def within(self) -> bool:
        """Whether every bound holds."""
        weights_hold = self.weights <= BOUNDS[self.task.optimizer]
        logs_hold = self.norms <= LOG_BOUND and self.losses <= LOG_BOUND
        samples_hold = self.samples <= SAMPLE_BOUND
        averages_hold = self.average <= AVERAGE_BOUND
        return weights_hold and averages_hold and logs_hold and samples_hold


def compare(task: Task, alone: dict[str, Any], together: dict[str, Any]) -> Row:
    """The distances between two runs' results."""
    weights = {name: distance(alone["weights"][name], w) for name, w in together["weights"].items()}
    averages = [distance(alone["average"][name], w) for name, w in together["average"].items()]
    worst = max(weights, key=lambda name: weights[name])
    return Row(
        task=task,
        weights=weights[worst],
        average=max(averages),
        norms=logged_distance(alone["norms"], together["norms"]),
        losses=logged_distance(alone["losses"], together["losses"]),
        samples=float((alone["samples"] - together["samples"]).abs().max()),
        worst=worst,
    )


def distance(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||a||."""
    return float((a - b).norm() / a.norm().clamp(min=1e-30))


def logged_distance(a: Sequence[float], b: Sequence[float]) -> float:
    """The largest relative difference of two logged series; infinite if their lengths differ."""
    if len(a) != len(b) or not a:
        return float("inf")
    return max(abs(x - y) / abs(x) for x, y in zip(a, b, strict=True))


def measure(
    engines: Sequence[str], ranks: int, steps: int, optimizers: Sequence[str] = OPTIMIZERS
) -> list[Row]:
    """Runs everything and compares."""
    cases = [
        Task(engine="alone", optimizer=optimizer, max_norm=max_norm, steps=steps, microbatches=2)
        for optimizer in optimizers
        for max_norm in (None, 0.05)
    ]
    with TemporaryDirectory() as folder:
        alone = run_tasks(cases, 1, Path(folder) / "alone")
        tasks = [replace(case, engine=engine) for engine in engines for case in cases]
        together = run_tasks(tasks, ranks, Path(folder) / "together")
    reference = dict(zip(cases, alone, strict=True))
    return [
        compare(task, reference[replace(task, engine="alone")], result)
        for task, result in zip(tasks, together, strict=True)
    ]


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| engine | optimizer | clip | weights | average | norms | losses | samples | worst |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        clip = "-" if row.task.max_norm is None else f"{row.task.max_norm:g}"
        measured = (row.weights, row.average, row.norms, row.losses, row.samples)
        numbers = " | ".join(f"{x:.1e}" for x in measured)
        mark = "" if row.within else " **above its bound**"
        lines.append(
            f"| {row.task.engine} | {row.task.optimizer} | {clip} | {numbers} | {row.worst}{mark} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    given = parser.parse_args()
    rows = measure(given.engines, given.ranks, given.steps, given.optimizers)
    print(table(rows))
    return 0 if all(row.within for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
