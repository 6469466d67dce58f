# SPDX-License-Identifier: Apache-2.0
"""Real jobs on one folder of checkpoints: two at once, other data, and a start from another run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from job import BIN, FASTEST, ROOT, outside, run

from ahpa_scale.checkpoint.find import list_checkpoints
from ahpa_scale.checkpoint.lease import LEASE
from ahpa_scale.checkpoint.manifest import Manifest

FEW = ("global_train_batch_size=16", "data.num_workers=1", "optimizer.warmup=0ba",
       "sampling.interval=null", "logging.interval=1ba", "model.depth=2", "alignment.tap=1",
       f"precision={FASTEST}", "checkpoint.autoresume=true")  # fmt: skip


def words(data: Path, folder: Path, saved: Path, *overrides: str) -> list[str]:
    places = (f"data.local={data}", f"output_dir={folder}", f"checkpoint.save_folder={saved}")
    return ["train.py", "yamls/demo-ahpa.yaml", *FEW, *places, *overrides]


def train(*arguments: Any, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    command = [sys.executable] if ranks == 1 else [BIN / "composer", "-n", ranks]
    return run(*command, *words(*arguments))


def newest(saved: Path) -> Manifest:
    manifest = list_checkpoints(str(saved))[-1].manifest
    assert manifest is not None
    return manifest


def batches(folder: Path) -> list[int]:
    return [json.loads(row)["batch"] for row in (folder / "metrics.jsonl").open()]


@pytest.fixture(scope="module")
def data(demo_data) -> Path:
    """Four batches."""
    return demo_data(64)


@pytest.fixture(scope="module")
def other(data: Path, tmp_path_factory) -> Path:
    """The same set, its latents scaled otherwise."""
    folder = Path(shutil.copytree(data, tmp_path_factory.mktemp("other") / "demo"))
    card = json.loads((folder / "dataset.json").read_text())
    card["scaling"]["kind"] = "channel"
    (folder / "dataset.json").write_text(json.dumps(card))
    return folder


@pytest.fixture(scope="module")
def first(data: Path, tmp_path_factory) -> Path:
    """Where a run has saved in the middle of its first pass."""
    folder = tmp_path_factory.mktemp("first")
    done = train(data, folder / "run", folder / "saved", "max_duration=3ba")
    assert done.returncode == 0, done.stderr
    return folder / "saved"


def test_other_data_are_taken_up_on_purpose_only(first, other, tmp_path: Path):
    saved = Path(shutil.copytree(first, tmp_path / "saved"))
    done = train(other, tmp_path / "run", saved, "max_duration=5ba", ranks=2)
    assert done.returncode == 2, done.stderr
    (line,) = (one for one in done.stderr.splitlines() if one.startswith("error: "))
    assert "scaling of latents (" in line
    assert [path.name for path in saved.glob("ba*")] == ["ba3"]
    accepted = ("max_duration=5ba", "checkpoint.accept_other_data=true")
    done = train(other, tmp_path / "run", saved, *accepted)
    assert done.returncode == 0, done.stderr
    assert batches(tmp_path / "run") == [4, 5]
    position = newest(saved).data
    assert position is not None
    assert (position["epoch"], position["sample_in_epoch"]) == (0, 32), "of the pass begun anew"
    assert newest(saved).run_id == newest(first).run_id


def test_another_run_starts_in_its_own_order(first, data, tmp_path: Path):
    own = ("seed=5", "max_duration=4ba", f"checkpoint.load_path={first}")
    done = train(data, tmp_path / "run", tmp_path / "saved", *own)
    assert done.returncode == 0, done.stderr
    assert batches(tmp_path / "run") == [4]
    position, before = newest(tmp_path / "saved").data, newest(first).data
    assert position is not None
    assert before is not None
    assert position["sample_in_epoch"] == 16
    assert position["shuffle_seed"] == before["shuffle_seed"] + 5
    assert newest(tmp_path / "saved").run_id != newest(first).run_id


def test_of_two_jobs_in_one_folder_the_second_does_not_start(data, tmp_path: Path):
    saved, run_folder = tmp_path / "saved", tmp_path / "run"
    endless = ("max_duration=1000000ba", "checkpoint.save_interval=2ba", "checkpoint.keep=2")
    process = subprocess.Popen(
        [sys.executable, *words(data, run_folder, saved, *endless)],
        cwd=ROOT,
        env={**outside(), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    try:
        while not (saved / "latest").exists():
            assert process.poll() is None
        done = train(data, tmp_path / "second", saved, *endless, ranks=2)
        assert done.returncode == 2, done.stderr
        assert f"in use by the run 'demo-ahpa' (process {process.pid} on " in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "second" / "metrics.jsonl").exists()
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    assert (saved / LEASE).exists()
    last = newest(saved).batch
    done = train(data, run_folder, saved, f"max_duration={last + 1}ba")
    assert done.returncode == 0, done.stderr
    assert "waiting" not in done.stderr, "its death is known"
    assert not (saved / LEASE).exists()
    assert batches(run_folder)[-1] == last + 1
