# SPDX-License-Identifier: Apache-2.0
"""Checkpoints through the public door: a job that is asked to leave, and is started again."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from job import CLI, ROOT, run, variables, warmed

from ahpa_scale.checkpoint.find import list_checkpoints
from benchmarks.resume_engines import BOUND, measure


def settings(folder: Path) -> list[str]:
    return [
        f"data.local={folder / 'data'}",
        "data.num_workers=1",
        f"output_dir={folder / 'run'}",
        f"checkpoint.save_folder={folder / 'saved'}",
        "checkpoint.save_interval=1000ba",
        "checkpoint.autoresume=true",
        "global_train_batch_size=32",
        "model.depth=3",
        "optimizer.warmup=0ba",
        "logging.interval=1ba",
        "logging.tensorboard=true",
        "logging.wandb=checkpoints",
        "sampling.interval=null",
        "precision=fp32",
        "parallelism.engine=fsdp2",
    ]


def rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / "run" / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def logged_steps(folder: Path) -> list[int]:
    """Batches of the loss that TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (place,) = (folder / "run" / "tensorboard").iterdir()
    events = EventAccumulator(str(place))
    events.Reload()
    return [event.step for event in events.Scalars("loss/train/total")]


@pytest.fixture(scope="module")
def asked(demo_data, tmp_path_factory) -> tuple[Path, int, str, str]:
    """A run on two ranks that was sent SIGTERM through its launcher: folder, exit code, stdout,
    stderr.
    """
    folder = tmp_path_factory.mktemp("asked")
    demo_data(256).rename(folder / "data")
    process = subprocess.Popen(
        warmed(CLI, "launch", "--nproc", 2, "train.py", "yamls/demo-ahpa.yaml", *settings(folder)),
        cwd=ROOT,
        env=variables(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not rows(folder):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=600)
    return folder, process.returncode, out, err


def test_sigterm_saves_the_batch_and_leaves_with_its_own_code(asked):
    folder, code, out, err = asked
    assert code == 79, err
    (saved,) = list_checkpoints(str(folder / "saved"))
    assert saved.problem is None
    assert saved.manifest is not None
    assert saved.manifest.world_size == 2
    assert saved.batch == rows(folder)[-1]["batch"]
    assert f"stopped after batch {saved.batch}, which is saved" in err
    assert "Traceback" not in err
    assert f"so far: metrics {folder}/run/metrics.jsonl" in out
    assert "done: " not in out


def test_the_same_command_goes_on_and_so_do_its_trackers(asked):
    folder, _, _, _ = asked
    last = rows(folder)[-1]["batch"]
    items = [*settings(folder), f"max_duration={last + 2}ba"]
    done = run(CLI, "launch", "--nproc", "2", "train.py", "yamls/demo-ahpa.yaml", *items)
    assert done.returncode == 0, done.stderr
    assert [row["batch"] for row in rows(folder)] == list(range(1, last + 3))
    # A loss bears the number of the batch before its own.
    assert logged_steps(folder) == list(range(last + 2)), "each once"
    names = [path.name for path in (folder / "run" / "wandb").glob("offline-run-*")]
    assert len(names) == 2
    assert len({re.sub(r".*-", "", name) for name in names}) == 1, "one run to wandb"
    done = run(CLI, "launch", "--nproc", "2", "train.py", "yamls/demo-ahpa.yaml", *items)
    assert done.returncode == 0, done.stderr
    assert f"nothing left to train: {last + 2} batches are max_duration" in done.stdout


def test_engines_take_up_one_anothers_checkpoints_on_other_numbers_of_ranks():
    """All six, on up to four ranks, are the benchmark's."""
    found = measure(("fsdp2", "zero3"), (1, 2), steps=6)
    assert len(found) == 8
    assert max(found.values()) <= BOUND
