# SPDX-License-Identifier: Apache-2.0
"""The comparison on anyone's pictures, by its command."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from job import run
from PIL import Image

from experiments.pictures import collect
from experiments.recipes import FolderRecipe
from experiments.transfer import EIGHTHS, steps_within

LAST_LINE = r"ratio (\d+\.\d+) \[(nan|\d+\.\d+), (nan|inf|\d+\.\d+)\]"


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Two classes of pictures, bright and dark."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name, level in (("bright", 180), ("dark", 60)):
        (root / name).mkdir()
        for number in range(60):
            noise = rng.integers(-50, 50, (20, 24, 3))
            picture = Image.fromarray((level + noise).astype(np.uint8))
            picture.save(root / name / f"{number}.png")
    return root


def transfer(images: Path, work: Path, *more: str) -> subprocess.CompletedProcess[str]:
    words = ["--images", str(images), "--work", str(work), "--jobs", "2", *more]
    return run(sys.executable, "experiments/transfer.py", *words)


def test_the_last_line_is_the_ratio_and_a_second_call_only_repeats_it(images, tmp_path):
    quick = ("--size", "16", "--vae", "demo", "--steps", "8", "--seeds", "1", "--judge-steps", "2")
    done = transfer(images, tmp_path, *quick, "--samples", "64")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(LAST_LINE, done.stdout.splitlines()[-1])
    assert done.stdout.count("step") == 10, "five checkpoints of two variants"
    (said,) = re.findall("curves, router and pictures: (.+)", done.stdout)
    assert "real pictures" in Path(said).read_text()
    assert len(re.findall("at the end, ahpa - none: .+, no interval", done.stdout)) == 2, "one seed"
    (log,) = (tmp_path / "data").glob("*.log")
    assert "cores to build on: 2\n" in log.read_text(), "both jobs' cores build the one data set"
    again = transfer(images, tmp_path, *quick, "--samples", "64")
    assert again.stdout == done.stdout
    assert "2 cells, 2 complete" in again.stderr


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--minutes", "1", "--steps", "80"), "not both"),
        (("--steps", "2"), "--steps must be at least 8"),
        (("--vae", "nowhere"), "nowhere"),
    ],
)
def test_a_mistake_is_one_line(more, words, images, tmp_path):
    done = transfer(images, tmp_path, *more)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


@given(
    left=st.floats(1, 1e5),
    cells=st.integers(2, 20),
    jobs=st.integers(1, 8),
    step=st.floats(1e-3, 10),
    judgement=st.floats(0, 100),
)
def test_the_steps_fit_the_time(left, cells, jobs, step, judgement):
    steps = steps_within(left, cells, jobs, step, judgement)
    rounds = math.ceil(cells / jobs)
    wanted = rounds * (steps * step + len(EIGHTHS) * judgement)
    rounding = 1 + 1e-9
    assert steps == 8 or wanted <= left * rounding
    assert left <= (wanted + rounds * step) * rounding, "one more step would fit"


def test_one_class_or_no_folder_is_refused(images, tmp_path):
    assert "two sub-folders" in transfer(images / "bright", tmp_path).stderr
    assert "no folder" in transfer(images / "nowhere", tmp_path).stderr


def test_the_split_depends_on_names_alone(images):
    recipe = FolderRecipe(recipe="folder", folder=str(images), size=16, test_share=0.3)
    parts, classes = collect(recipe, grid=2)
    assert classes == ["bright", "dark"]
    assert len(parts["train"]) + len(parts["test"]) == 120
    assert 20 <= len(parts["test"]) <= 52
    few = recipe.model_copy(update={"count": 30})
    kept, _ = collect(few, grid=2)
    assert len(kept["train"]) == 30
    assert np.array_equal(kept["test"].images_NHWC, parts["test"].images_NHWC)
    for part in parts.values():
        bright = part.images_NHWC.mean(axis=(1, 2, 3)) > 120
        assert np.array_equal(bright, part.labels_N == 0)
