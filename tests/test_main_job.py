# SPDX-License-Identifier: Apache-2.0
"""The main job through its public door: prepare, train on two ranks, look at what lies there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from job import BIN, CLI, FASTEST, ROOT, run
from PIL import Image

QUICK = [
    "data.num_workers=1",
    "global_train_batch_size=32",
    "optimizer.warmup=0ba",
    "logging.interval=1ba",
    "logging.router_interval=4ba",
    "sampling.interval=null",
    f"precision={FASTEST}",
]


def train(folder: Path, *overrides: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    command = [sys.executable] if ranks == 1 else [str(BIN / "composer"), "-n", str(ranks)]
    places = [f"output_dir={folder / 'run'}", f"checkpoint.save_folder={folder / 'checkpoints'}"]
    # A key is given once; the later one wins here.
    chosen = dict(item.split("=", 1) for item in [*QUICK, *places, *overrides])
    items = [f"{key}={value}" for key, value in chosen.items()]
    return run(*command, "train.py", "yamls/demo-ahpa.yaml", *items)


def rows(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "run" / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def data(demo_data) -> Path:
    return demo_data(256)


@pytest.fixture(scope="module")
def two_ranks(data: Path, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("two")
    done = train(
        folder,
        f"data.local={data}",
        "max_duration=12ba",
        "sampling={interval: 8ba, steps: 4}",
        "checkpoint.save_interval=8ba",
        "logging.tensorboard=true",
        "logging.wandb=demo",
        ranks=2,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return folder, done


def test_everything_a_person_looks_for_is_there(two_ranks):
    folder, done = two_ranks
    run_folder = folder / "run"
    # Composer's launcher has the very last word.
    (last,) = [line for line in done.stdout.splitlines() if line.startswith("done: ")]
    for name in ("metrics.jsonl", "samples", "router.png", "checkpoints"):
        assert name in last
    assert "batch 12/12" in done.stderr
    assert "images/s" in done.stderr
    assert sorted(p.name for p in (run_folder / "samples").iterdir()) == [
        "step-00000008.png",
        "step-00000012.png",
    ]
    for picture in [*(run_folder / "samples").iterdir(), run_folder / "router.png"]:
        pixels = np.asarray(Image.open(picture))
        assert pixels.std() > 5, f"{picture} is blank"
    assert list((run_folder / "tensorboard").rglob("events*"))
    assert list((run_folder / "wandb").glob("offline-run-*"))
    checkpoints = {p.name for p in (folder / "checkpoints").iterdir()}
    assert checkpoints >= {"ba8", "ba12", "latest"}


def test_metrics_hold_the_promised_keys_once_per_batch(two_ranks):
    logged = rows(two_ranks[0])
    assert [row["batch"] for row in logged] == list(range(1, 13))
    assert [row["num_images"] for row in logged] == [32 * n for n in range(1, 13)]
    for row in logged:
        total = row["loss/train/flow"] + 0.5 * row["loss/train/alignment"]
        assert row["loss/train/total"] == pytest.approx(total, rel=1e-5)
    routers = [row["router"] for row in logged if "router" in row]
    assert routers[0]["levels"] == ["local_geometry", "spatial_topology", "coarse_layout"]
    for router in routers:
        for column in zip(*router["weight_GT"], strict=True):
            if column[0] is not None:
                assert sum(column) == pytest.approx(1, abs=1e-3)


def test_the_resolved_configuration_lies_beside_the_run_and_reloads(two_ranks, data: Path):
    from ahpa_scale.config.load import load_yaml

    config = load_yaml(two_ranks[0] / "run" / "config.yaml")
    assert config.max_duration == "12ba"
    assert config.alignment.tap == 2
    assert config.data.local == str(data)


def test_one_rank_trains_to_the_same_losses_as_two(two_ranks, data: Path, tmp_path):
    done = train(tmp_path, f"data.local={data}", "max_duration=12ba")
    assert done.returncode == 0, done.stderr
    for one, two in zip(rows(tmp_path), rows(two_ranks[0]), strict=True):
        for key in ("loss/train/flow", "loss/train/alignment"):
            # bfloat16 matrix products of another batch shape, accumulated over the steps.
            assert one[key] == pytest.approx(two[key], rel=2e-3), (one["batch"], key)


def test_a_second_run_on_the_same_folder_is_refused_and_changes_nothing(two_ranks, data: Path):
    folder, _ = two_ranks
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    done = train(folder, f"data.local={data}", "max_duration=12ba")
    assert done.returncode == 2
    assert "output_dir" in done.stderr
    assert "holds a run already" in done.stderr
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_checkpoints_of_another_run_are_not_overwritten(two_ranks, data: Path, tmp_path):
    folder, _ = two_ranks
    saved = f"checkpoint.save_folder={folder / 'checkpoints'}"
    start = f"checkpoint.load_path={folder / 'checkpoints' / 'ba8'}"
    for overrides in ([saved], [saved, start]):
        done = train(tmp_path, f"data.local={data}", *overrides)
        assert done.returncode == 2
        assert "checkpoint.save_folder" in done.stderr
        assert "holds a run already" in done.stderr


def test_another_run_starts_from_a_checkpoint(two_ranks, data: Path, tmp_path):
    start = f"checkpoint.load_path={two_ranks[0] / 'checkpoints' / 'ba8'}"
    done = train(tmp_path, f"data.local={data}", start, "max_duration=9ba")
    assert done.returncode == 0, done.stderr
    assert [row["batch"] for row in rows(tmp_path)] == [9]


def test_a_run_killed_and_resumed_ends_like_an_undisturbed_one(data: Path, tmp_path):
    common = [
        f"data.local={data}",
        "checkpoint.save_interval=4ba",
        "precision=fp32",
    ]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert train(straight, *common, "max_duration=10ba").returncode == 0
    command = [
        sys.executable,
        "train.py",
        "yamls/demo-ahpa.yaml",
        *(item for item in QUICK if not item.startswith("precision=")),
        *common,
        f"output_dir={killed / 'run'}",
        f"checkpoint.save_folder={killed / 'checkpoints'}",
        "max_duration=1000ba",
    ]
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL
    )
    try:
        while not (killed / "checkpoints" / "latest").exists():
            assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    resumed = train(killed, *common, "max_duration=10ba", "checkpoint.autoresume=true")
    assert resumed.returncode == 0, resumed.stderr
    keys = ("batch", "num_images", "loss/train/total", "loss/train/flow", "loss/train/alignment")
    assert [[row[key] for key in keys] for row in rows(killed)] == [
        [row[key] for key in keys] for row in rows(straight)
    ]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("alignment.wieght=1", ["alignment.wieght", "weight"]),
        ("alignment.tap=9", ["alignment.tap", "6"]),
        ("data.local=/nowhere", ["data.local", "ahpa-scale prepare"]),
        ("global_train_batch_size=33", ["global_train_batch_size", "2 processes"]),
        ("model.input_size=16", ["model.input_size", "8x8"]),
    ],
)
def test_the_launcher_passes_on_one_line_and_exit_code_2(
    override: str, words: list[str], data: Path, tmp_path
):
    done = train(tmp_path, f"data.local={data}", override, ranks=2)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert all(word in errors[0] for word in words)
    assert "Traceback" not in done.stderr + done.stdout
    assert not (tmp_path / "run").exists()


def test_every_baseline_is_one_override_away(data: Path, tmp_path):
    for kind in ("none", "uniform", "scheduled", "latent"):
        folder = tmp_path / kind
        done = train(
            folder,
            f"data.local={data}",
            "max_duration=2ba",
            f"alignment.kind={kind}",
        )
        assert done.returncode == 0, done.stderr
        aligned = rows(folder)[-1]["loss/train/alignment"]
        assert (aligned is None) is (kind == "none")


def test_training_from_pictures_encodes_online(tmp_path: Path):
    pictures = tmp_path / "pictures"
    done = run(
        CLI, "prepare", "demo", "--size", "32", "--kind", "images",
        "--out", str(pictures), "--num-samples", "128", "--no-progress",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = train(tmp_path, f"data.local={pictures}", "data.online=true", "max_duration=3ba")
    assert done.returncode == 0, done.stderr
    assert rows(tmp_path)[-1]["loss/train/alignment"] != 0


def test_make_demo_goes_all_the_way(tmp_path: Path):
    """The README's first command, shortened."""
    done = run(
        "make", "demo", f"RUNS={tmp_path}", "DEMO_PICTURES=256",
        "DEMO_ARGS=max_duration=4ba optimizer.warmup=0ba sampling.interval=4ba sampling.steps=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"done: metrics {tmp_path}/demo/metrics.jsonl" in done.stdout
    assert (tmp_path / "demo" / "samples" / "step-00000004.png").exists()
    assert (tmp_path / "demo" / "router.png").exists()
    assert (tmp_path / "demo" / "report.html").exists()
    assert (tmp_path / "demo" / "pictures.png").exists()
    assert (tmp_path / "demo" / "diffusers" / "model_index.json").exists()
