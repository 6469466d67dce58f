# SPDX-License-Identifier: Apache-2.0
"""Runs on levels through a codec, stored and encoded while training, and on pooled ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from job import run

from ahpa_scale.data.prepare import prepare

POOLED = "the data set's levels are mean-pooled"


def train(data: Path, folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    items = {
        "data.local": data,
        "data.num_workers": 0,
        "output_dir": folder,
        "max_duration": "2ba",
        "global_train_batch_size": 16,
        "optimizer.warmup": "0ba",
        "logging.interval": "1ba",
        "sampling.interval": "null",
        "checkpoint.save_folder": "null",
        "precision": "fp32",
    }
    words = [f"{key}={value}" for key, value in items.items()]
    return run(sys.executable, "train.py", "yamls/demo-ahpa.yaml", *words, *overrides)


def losses(folder: Path) -> list[float]:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row["loss/train/alignment"] for row in rows if "loss/train/alignment" in row]


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sets")
    common = {"size": 32, "num_samples": 32, "vae_path": "demo", "progress": False}
    for name, options in {
        "latents": {},
        "images": {"kind": "images"},
        "pooled": {"codec": "pooled"},
    }.items():
        prepare("demo", str(folder / name), **common, **options)
    return {path.name: path for path in folder.iterdir()}


def test_a_run_that_encodes_online_has_the_targets_of_the_cache(sets, tmp_path):
    cached = train(sets["latents"], tmp_path / "cached")
    online = train(sets["images"], tmp_path / "online", "data.online=true")
    for done in (cached, online):
        assert done.returncode == 0, done.stderr
        assert POOLED not in done.stderr
    stored = losses(tmp_path / "cached")
    assert len(stored) == 2
    assert stored == pytest.approx(losses(tmp_path / "online"), rel=1e-3)


def test_a_run_on_pooled_levels_says_so_in_one_line(sets, tmp_path):
    done = train(sets["pooled"], tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert sum(POOLED in line for line in done.stderr.splitlines()) == 1
    other = train(sets["pooled"], tmp_path / "none", "alignment={kind: none}")
    assert other.returncode == 0, other.stderr
    assert POOLED not in other.stderr


def test_a_lost_codec_is_one_line_before_anything_is_trained(sets, tmp_path):
    (sets["images"] / "level_codec.safetensors").rename(tmp_path / "elsewhere")
    done = train(sets["images"], tmp_path / "run", "data.online=true")
    (tmp_path / "elsewhere").rename(sets["images"] / "level_codec.safetensors")
    assert done.returncode == 2
    assert "data.local: " in done.stderr
    assert "level_codec.safetensors is missing" in done.stderr
    assert "Traceback" not in done.stderr
