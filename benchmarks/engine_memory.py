# SPDX-License-Identifier: Apache-2.0
"""What each rank holds under every engine, from the line that a run prints about its engine.

    python benchmarks/engine_memory.py [--ranks 4] [--width 96] [--engines ddp fsdp2 ...]

Weights, gradients, optimizer and averages of a small DiT with AHPA attached, trained with AdamW in
float32; the last column is the share of what DDP's ranks hold. Ends with exit code 1 when FSDP2 or
ZeRO stage 3 on four ranks hold more than 0.30 of it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.ranks import ENGINES, Task, run_tasks

BOUND = 0.30
BOUNDED = ("fsdp2", "zero3")


def measure(engines: Sequence[str], ranks: int, width: int) -> dict[str, dict[str, int]]:
    """Bytes of rank 0, by engine and kind."""
    tasks = [Task(engine=engine, steps=2, width=width) for engine in ("ddp", *engines)]
    with TemporaryDirectory() as folder:
        results = run_tasks(tasks, ranks, Path(folder))
    return {task.engine: result["memory"] for task, result in zip(tasks, results, strict=True)}


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--engines", nargs="+", choices=ENGINES[1:], default=list(ENGINES[1:]))
    given = parser.parse_args()
    held = measure(given.engines, given.ranks, given.width)
    whole = sum(held["ddp"].values())
    kinds = list(held["ddp"])
    print(f"| engine | {' | '.join(f'{kind} MB' for kind in kinds)} | all MB | of ddp |")
    print("|---" * (len(kinds) + 3) + "|")
    too_much = False
    for engine, memory in held.items():
        numbers = " | ".join(f"{memory[kind] / 1e6:.2f}" for kind in kinds)
        share = sum(memory.values()) / whole
        print(f"| {engine} | {numbers} | {sum(memory.values()) / 1e6:.2f} | {share:.3f} |")
        too_much |= given.ranks == 4 and engine in BOUNDED and share > BOUND
    return int(too_much)


if __name__ == "__main__":
    raise SystemExit(main())
