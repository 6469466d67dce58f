# SPDX-License-Identifier: Apache-2.0
"""The wheel alone is enough: installed elsewhere, it writes what a run needs and trains."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from ahpa_scale.commands.init import SHIPPED

ROOT = Path(__file__).parents[1]


def call(*words: object, cwd: Path) -> str:
    """What a command prints that has nothing of the checkout in its environment."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [*map(str, words)],
        cwd=cwd,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean environment with the wheel, beside the packages that it depends on."""
    room = tmp_path_factory.mktemp("wheel")
    tree = room / "tree"
    call("git", "clone", "--quiet", ROOT, tree, cwd=room)
    call(sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", room, tree, cwd=room)
    call(sys.executable, "-m", "venv", room / "env", cwd=room)
    (site,) = (room / "env").glob("lib/python3*/site-packages")
    # A path file of a path file is not read: the editable install of this checkout stays out.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (wheel,) = room.glob("ahpa_scale-*.whl")
    pip = [room / "env/bin/python", "-m", "pip", "install", "--no-deps", "-q"]
    call(*pip, "--ignore-installed", wheel, cwd=room)
    return room


def test_the_wheel_takes_along_what_init_writes():
    # setup.py can't import the package: it runs before there is one, without its dependencies.
    lines = (ROOT / "setup.py").read_text().splitlines()
    (taken,) = [line for line in lines if line.startswith("SHIPPED = ")]
    assert ast.literal_eval(taken.removeprefix("SHIPPED = ")) == SHIPPED


def test_init_prepare_and_ten_batches(place: Path):
    program = place / "env/bin/ahpa-scale"
    told = call(program, "init", "runs", cwd=place)
    assert "train.py, yamls/, k8s/" in told
    made = place / "runs"
    assert (made / "k8s/60-job.yaml").is_symlink()
    for folder in ("yamls", "k8s"):
        mine = {p.relative_to(made): p.read_bytes() for p in (made / folder).rglob("*.yaml")}
        theirs = {p.relative_to(ROOT): p.read_bytes() for p in (ROOT / folder).rglob("*.yaml")}
        assert mine == theirs
    call(place / "env/bin/python", "tools/k8s_settings.py", "--check", cwd=made)
    prepare = "prepare demo --size 32 --num-samples 64 --out data --no-progress"
    call(program, *prepare.split(), cwd=made)
    short = "max_duration=10ba optimizer.warmup=2ba global_train_batch_size=8"
    words = f"{short} data.local=data sampling.interval=null"
    launch = [place / "env/bin/python", "-m", "ahpa_scale", "launch", "--nproc", 1, "train.py"]
    call(*launch, "yamls/demo-ahpa.yaml", *words.split(), cwd=made)
    assert (made / "runs/demo-ahpa/checkpoints/ba10/manifest.json").is_file()
    where = "import ahpa_scale; print(ahpa_scale.__file__)"
    assert str(place) in call(place / "env/bin/python", "-c", where, cwd=made)


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path):
    (tmp_path / "mine").write_text("1")
    words = [sys.executable, "-m", "ahpa_scale", "init", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert "exists already" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
