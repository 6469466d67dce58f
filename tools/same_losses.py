# SPDX-License-Identifier: Apache-2.0
"""Whether a change leaves every loss as it was, to the bit: the demo, every engine, a resumed run.
The last run, `taken up`, is begun by BEFORE and ended by AFTER, which then also evaluates and
diagnoses it.

    python -m tools.same_losses BEFORE [AFTER] [--batches 20] [--only zero2 resumed]

Each commit trains in its own work tree, on two ranks of this machine (hsdp on four), with the
packages of this environment. AFTER is HEAD by default. Exit code 1: a loss differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ahpa_scale.progress import progress_bar

_ROOT = Path(__file__).parents[1]
_ENGINES = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
_KINDS = ("none", "uniform", "scheduled", "latent", "self")
_BASE = ("global_train_batch_size=16", "logging.interval=1ba", "optimizer.warmup=2ba")
#: Runs by name: the words added to the demo's command line.
RUNS: dict[str, tuple[str, ...]] = {
    **{engine: (f"parallelism.engine={engine}", "precision=fp32") for engine in _ENGINES},
    "hsdp": ("parallelism.engine=hsdp", "parallelism.replicate_degree=2", "precision=fp32"),
    **{f"kind {kind}": (f"alignment.kind={kind}",) for kind in _KINDS},
    "literal": ("alignment.router.objective=literal",),
    "gap": ("alignment.router.objective=gap", "alignment.router.gap_strength=true"),
    "window": ("alignment.window=[0.4,0.9]", "alignment.placebo=true"),
    "ratio": ("alignment.weight=null", "alignment.gradient_ratio=0.5"),
    "resumed": ("checkpoint.autoresume=true",),
    "taken up": ("checkpoint.autoresume=true",),
}
_IN_HALVES = ("resumed", "taken up")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train every run at both commits, print a line for each, and return the exit code."""
    given = _parser().parse_args(arguments)
    names = [name for name in RUNS if not given.only or name in given.only]
    differing = 0
    with tempfile.TemporaryDirectory(prefix="same-losses-") as room:
        place = Path(room)
        with (
            _tree(given.before, place / "before") as before,
            _tree(given.after, place / "after") as after,
        ):
            data = place / "data"
            prepare = f"prepare demo --size 32 --num-samples 512 --no-progress --out {data}"
            _call(before, "-m", "ahpa_scale.cli", *prepare.split())
            bar = progress_bar(total=2 * len(names), unit="run", desc="training", shown=True)
            with bar:
                for name in names:
                    curves = []
                    for tree in (before, after):
                        first = before if name == "taken up" else tree
                        curves.append(_train(first, tree, name, data, given.batches))
                        bar.update()
                    same = curves[0] == curves[1]
                    differing += not same
                    verdict = "the same" if same else f"differs: {_first(*curves)}"
                    print(f"\n{name:16} {len(curves[0])} losses, {verdict}", flush=True)
    return int(differing > 0)


def _train(first: Path, tree: Path, name: str, data: Path, batches: int) -> dict[str, float]:
    """Every logged loss of a run, by batch and name. A run in halves is begun by `first`."""
    out = tree.parent / f"{tree.name}-{name.replace(' ', '-')}"
    words = [*_BASE, *RUNS[name], f"data.local={data}", f"output_dir={out}",
             f"checkpoint.save_folder={out}/checkpoints", "sampling.interval=null"]  # fmt: skip
    parts = [(tree, batches)]
    if name in _IN_HALVES:
        parts.insert(0, (first, batches // 2))
    for worker, length in parts:
        until = [f"max_duration={length}ba", f"checkpoint.save_interval={batches // 2}ba"]
        demo = ["train.py", "yamls/demo-ahpa.yaml", *words, *until]
        _call(worker, "-m", "composer.cli.launcher", "-n", "4" if name == "hsdp" else "2", *demo)
    if name == "taken up":
        _judge(tree, out, data)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {
        f"batch {row['batch']} {key}": value
        for row in rows
        for key, value in row.items()
        if key.startswith("loss/")
    }


def _judge(tree: Path, run: Path, data: Path) -> None:
    """Evaluates and diagnoses a run."""
    command = "-m", "ahpa_scale.cli"
    told = ["--data", str(data), "--no-progress"]
    saved, out = str(run / "checkpoints"), str(run / "evaluated")
    _call(tree, *command, "evaluate", saved, *told, "--out", out, "--bins", "2")
    _call(tree, *command, "diagnose", str(run), *told, "--out", str(run / "map"))


def _first(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """The first loss that differs."""
    names = [*before, *(name for name in after if name not in before)]
    name = next(name for name in names if before.get(name) != after.get(name))
    return f"{name} was {before.get(name)!r}, is {after.get(name)!r}"


@contextmanager
def _tree(commit: str, place: Path) -> Iterator[Path]:
    """A work tree of a commit."""
    git = ["git", "-C", str(_ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(place), commit], check=True)
    try:
        yield place
    finally:
        subprocess.run([*git, "remove", "--force", str(place)], check=True)


def _call(tree: Path, *words: str) -> None:
    """Runs Python in a work tree; its output is shown only if it fails.

    Raises:
        SystemExit: it failed.
    """
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=tree, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{tree.name}: {' '.join(words)}\n{done.stdout}\n{done.stderr}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before", help="commit to compare with")
    parser.add_argument("after", nargs="?", default="HEAD", help="the other commit")
    parser.add_argument("--batches", type=int, default=20, help="length of a run")
    parser.add_argument("--only", nargs="*", choices=RUNS, help="these runs alone")
    return parser


if __name__ == "__main__":
    sys.exit(main())
