# SPDX-License-Identifier: Apache-2.0
"""A small run of the product itself with three checkpoints, and the command that evaluates them: a
plug-in.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from job import FASTEST, ROOT

from ahpa_scale.cli import main

if TYPE_CHECKING:
    from ahpa_scale.models.generator import DiffusionGenerator

DEMO = {"size": 32, "num_samples": 64, "vae_path": "demo", "progress": False}
BATCHES = [2, 4, 6]
#: Of a row.
SETTINGS = {
    "run_name": "r", "data": "0" * 16, "pictures": 8, "bins": 2, "weights": "ema", "classes": [0],
    "num_per_class": 1, "steps": 5, "method": "euler", "guidance_scale": 1.0, "seed": 0,
    "samples": None, "reference": None, "inception": None,
}  # fmt: skip


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """Training and held-out data, and a run of six batches with a checkpoint after every second."""
    from ahpa_scale.data.prepare import prepare
    from ahpa_scale.run.main import main as train

    place = tmp_path_factory.mktemp("evaluate")
    prepare("demo", str(place / "data"), **DEMO)
    prepare("demo", str(place / "held-out"), start=64, **DEMO)
    train(
        [
            str(ROOT / "yamls" / "demo-ahpa.yaml"),
            "max_duration=6ba",
            "global_train_batch_size=32",
            "model.depth=3",
            "alignment.tap=2",
            "data.num_workers=1",
            f"data.local={place / 'data'}",
            f"output_dir={place / 'run'}",
            f"checkpoint.save_folder={place / 'run' / 'checkpoints'}",
            "checkpoint.save_interval=2ba",
            "checkpoint.keep=null",
            "optimizer.warmup=0ba",
            "ema.decay=0.5",
            "sampling.interval=6ba",
            "sampling.classes=[0,3]",
            "sampling.steps=3",
            f"precision={FASTEST}",
        ]
    )
    return place


@pytest.fixture
def saved(trained: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoints' folder."""
    return Path(shutil.copytree(trained / "run" / "checkpoints", tmp_path / "saved"))


@pytest.fixture
def evaluate(trained: Path, tmp_path: Path, capfd) -> Callable[..., tuple[int, str, str]]:
    """Runs the command with two bins: exit code, standard output, standard error."""
    before = signal.getsignal(signal.SIGTERM)

    def call(checkpoints: object, *words: object, **places: object) -> tuple[int, str, str]:
        data, out = places.get("data", trained / "held-out"), places.get("out", tmp_path / "out")
        with pytest.raises(SystemExit) as ended:
            main([*command(checkpoints, data, out), *map(str, words)])
        said, told = capfd.readouterr()
        return int(ended.value.code or 0), said, told

    yield call
    signal.signal(signal.SIGTERM, before)


def command(checkpoints: object, data: object, out: object) -> list[str]:
    words = ["evaluate", checkpoints, "--data", data, "--out", out, "--bins", 2, "--no-progress"]
    return [str(word) for word in words]


def rows_of(out: Path) -> list[dict[str, Any]]:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    text = (out / "evaluation.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def batches_of(out: Path) -> list[int]:
    return [row["batch"] for row in rows_of(out)]


def printed(said: str) -> list[str]:
    """Names in the table."""
    words = [line.split() for line in said.splitlines()]
    return [word[0] for word in words if word and word[0].startswith("ba")]


def model_of(folder: Path, data: Path, kind: Any = "ema") -> DiffusionGenerator:
    from ahpa_scale.checkpoint.weights import read_weights
    from ahpa_scale.data.card import read_card
    from ahpa_scale.run.build import build_generator
    from ahpa_scale.run.trained import backbone_of, find_run, take_weights

    config, where = find_run(str(folder))
    generator = build_generator(config, read_card(str(data)))
    take_weights(generator.dit, backbone_of(read_weights(Path(where), kind)), where)
    return generator
