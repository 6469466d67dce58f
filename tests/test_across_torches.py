# SPDX-License-Identifier: Apache-2.0
"""A run and its data go on under the other torch: of `.venv` and `.venv-new`, one made each."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from job import ROOT, outside, run
from test_engines_job import losses, words

HERE = Path(sys.executable).parent
THERE = ".venv" if HERE.parent.name == ".venv-new" else ".venv-new"
OTHER = ROOT / THERE / "bin"

pytestmark = pytest.mark.skipif(
    not (OTHER / "ahpa-scale").exists(), reason=f"{THERE} is not there: make venv, with TORCH=new"
)


def call(environment: Path, *command: object) -> None:
    """Runs a program of one of the two environments."""
    program, *words = command
    path = environment / str(program)
    if environment == HERE:
        done = run(path, *words)
    else:
        done = subprocess.run(
            [path, *map(str, words)],
            cwd=ROOT,
            env=outside() | {"PATH": f"{environment}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=1200,
            check=False,
        )
    assert done.returncode == 0, done.stderr


def train(environment: Path, data: Path, folder: Path, *overrides: str) -> None:
    chosen = words(data, folder, "precision=fp32", *overrides)
    call(environment, "composer", "-n", 2, "train.py", *chosen)


@pytest.mark.parametrize(
    ("engine", "first", "second"),
    [("ddp", OTHER, HERE), ("fsdp2", HERE, OTHER), ("zero2", OTHER, HERE)],
    ids=["ddp", "fsdp2", "zero2"],
)
def test_a_checkpoint_of_one_torch_is_taken_up_by_the_other(
    engine, first, second, demo_data, tmp_path
):
    chosen = f"parallelism.engine={engine}"
    train(first, demo_data(256), tmp_path / "straight", chosen)
    kept = tmp_path / "straight/checkpoints/ba3"
    shutil.copytree(kept, tmp_path / "run/checkpoints/ba3")
    train(second, demo_data(256), tmp_path / "run", chosen, "checkpoint.autoresume=true")
    straight, went_on = losses(tmp_path / "straight"), losses(tmp_path / "run")
    assert sorted(went_on) == [4, 5, 6]
    for batch, loss in went_on.items():
        assert loss == pytest.approx(straight[batch], rel=1e-4)


def test_data_that_either_torch_encodes_train_both_and_are_told_apart(tmp_path):
    cards = []
    for name, environment in {"here": HERE, "there": OTHER}.items():
        out = tmp_path / name
        size = ("--size", 32, "--num-samples", 64)
        call(environment, "ahpa-scale", "prepare", "demo", *size, "--out", out)
        cards.append(json.loads((out / "dataset.json").read_text()))
        other = OTHER if environment == HERE else HERE
        train(other, out, tmp_path / f"run-{name}")
    mine, theirs = cards
    assert mine["torch"] != theirs["torch"]
    del mine["torch"], theirs["torch"], mine["fingerprint"], theirs["fingerprint"]
    # Each torch has fitted its own codec, to the same pictures.
    ours, others = mine.pop("codec"), theirs.pop("codec")
    assert mine == theirs
    assert ours.pop("digest") != others.pop("digest")
    for one, other in zip(ours.pop("levels"), others.pop("levels"), strict=True):
        assert one.pop("name") == other.pop("name")
        assert one == pytest.approx(other, abs=0.01)
    assert ours == others
