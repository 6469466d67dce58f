# SPDX-License-Identifier: Apache-2.0
"""Engines through the public door: a job is trained, saved, and taken up by another engine."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from job import BIN, run

from ahpa_scale.config.schema import Data

#: The default of data.num_workers: each engine has a job with as many.
USUAL = Data().num_workers
QUICK = [
    "global_train_batch_size=32",
    "optimizer.warmup=0ba",
    "logging.interval=1ba",
    "logging.router_interval=4ba",
    "sampling.interval=null",
    "checkpoint.save_interval=3ba",
    "max_duration=6ba",
    "model.depth=3",
]


@pytest.fixture(scope="module")
def data(demo_data) -> Path:
    return demo_data(256)


def train(
    data: Path, folder: Path, *overrides: str, ranks: int = 2, workers: int = 1
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable] if ranks == 1 else [BIN / "composer", "-n", ranks]
    return run(*command, "train.py", *words(data, folder, *overrides, workers=workers))


def words(data: Path, folder: Path, *overrides: str, workers: int = 1) -> list[str]:
    places = [f"data.local={data}", f"data.num_workers={workers}", f"output_dir={folder}"]
    places.append(f"checkpoint.save_folder={folder}/checkpoints")
    return ["yamls/demo-ahpa.yaml", *QUICK, *places, *overrides]


def losses(folder: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {row["batch"]: row["loss/train/total"] for row in rows}


def half(done: Path, folder: Path) -> str:
    """Puts the checkpoint of a run's middle where the same run is to go on from it."""
    shutil.copytree(done / "checkpoints" / "ba3", folder / "checkpoints" / "ba3")
    return "checkpoint.autoresume=true"


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory) -> Path:
    """Six batches under FSDP2 in one go, saved at the third."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    done = train(data, folder, "parallelism.engine=fsdp2", "precision=fp32", workers=USUAL)
    assert done.returncode == 0, done.stderr
    assert "engine fsdp2: 2 ranks, 1 x 2 shards" in done.stderr
    assert "view tensor" not in done.stderr, "FSDP2 warns where a module returns a view"
    assert sorted(losses(folder)) == [1, 2, 3, 4, 5, 6]
    return folder


@pytest.mark.parametrize(
    ("engine", "ranks"), [("hsdp", 2), ("zero1", 2), ("zero2", 2), ("zero3", 2), ("ddp", 1)]
)
def test_another_engine_goes_on_from_the_checkpoint(engine, ranks, straight, data, tmp_path):
    resumed = half(straight, tmp_path / "run")
    chosen = [f"parallelism.engine={engine}", "precision=fp32", resumed]
    # Two ranks are one node, and hsdp has a copy on each.
    chosen += ["parallelism.replicate_degree=2"] if engine == "hsdp" else []
    done = train(data, tmp_path / "run", *chosen, ranks=ranks, workers=USUAL)
    assert done.returncode == 0, done.stderr
    assert f"engine {engine}: {ranks} ranks" in done.stderr
    assert "FutureWarning" not in done.stderr
    told, went_on = losses(straight), losses(tmp_path / "run")
    assert sorted(went_on) == [4, 5, 6]
    for batch, loss in went_on.items():
        assert loss == pytest.approx(told[batch], rel=1e-4)


def test_fsdp2_goes_on_from_a_zero_checkpoint(data, tmp_path):
    """With averages and moments of the stage that shards everything."""
    zero = tmp_path / "zero3"
    done = train(data, zero, "parallelism.engine=zero3", "precision=fp32")
    assert done.returncode == 0, done.stderr
    resumed = half(zero, tmp_path / "run")
    done = train(data, tmp_path / "run", "parallelism.engine=fsdp2", "precision=fp32", resumed)
    assert done.returncode == 0, done.stderr
    told, went_on = losses(zero), losses(tmp_path / "run")
    for batch in (4, 5, 6):
        assert went_on[batch] == pytest.approx(told[batch], rel=1e-4)


#: Trains, and says which processes it has started that live on.
STARTED = """
import sys
import psutil
from ahpa_scale.preemption import listening
from ahpa_scale.run.main import main

if __name__ == "__main__":
    with listening(preparing=True) as requests:
        main(sys.argv[1:], requests)
    print([child.cmdline() for child in psutil.Process().children(recursive=True)])
"""


def test_deepspeed_starts_no_compilers(data, tmp_path):
    script = tmp_path / "started.py"
    script.write_text(STARTED)
    chosen = words(data, tmp_path / "run", "parallelism.engine=zero2", "precision=fp32")
    done = run(sys.executable, script, *chosen)
    assert done.returncode == 0, done.stderr
    assert "compile_worker" not in done.stdout


@pytest.mark.parametrize("engine", ["fsdp2", "zero2"])
def test_bfloat16_traffic_trains_alike(engine, straight, data, tmp_path):
    done = train(data, tmp_path, f"parallelism.engine={engine}", "precision=bf16")
    assert done.returncode == 0, done.stderr
    rounded, exact = losses(tmp_path), losses(straight)
    assert rounded != exact
    for batch, loss in rounded.items():
        assert loss == pytest.approx(exact[batch], rel=0.02)


def test_an_unknown_number_of_copies_is_said_before_anything_starts(tmp_path):
    done = train(tmp_path, tmp_path, "parallelism.engine=hsdp", "parallelism.replicate_degree=3")
    assert done.returncode == 2
    assert "3 copies can't share 2 processes evenly" in done.stderr
    assert "Traceback" not in done.stderr
