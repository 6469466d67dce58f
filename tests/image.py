# SPDX-License-Identifier: Apache-2.0
"""The project's image as a fixture; a plug-in of conftest."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from job import ROOT
from podman import build, packages_mount, why_not

#: As k8s/ names it.
TRAIN = "registry.example.com/ahpa_scale:0.1.0"
PREPARE = "registry.example.com/ahpa_scale-prepare:0.1.0"


#: In the builder's environment and working tree, and nowhere in what is built.
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "planted-aws-secret-1f0c",
    "WANDB_API_KEY": "planted-wandb-key-77aa",
    "HF_TOKEN": "planted-hf-token-e3d1",
}


@dataclass(frozen=True)
class Image:
    """What was built.

    Attributes:
        train: name of the target `train`.
        prepare: name of the target `prepare`.
        flags: that its containers need.
        seconds: that building `train` took.
        tree: what it was built from.
    """

    train: str
    prepare: str
    flags: tuple[str, ...]
    seconds: float
    tree: Path


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full-image",
        action="store_true",
        help="build the image with all packages in it (10 minutes, 20 GB of disk), and not with "
        "those of this environment mounted",
    )


@pytest.fixture(scope="session")
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The image of docker/, built on this machine."""
    reason = why_not()
    if reason is not None:
        pytest.skip(f"no containers: {reason}")
    tree = _working_tree(tmp_path_factory.mktemp("image") / "tree")
    full = request.config.getoption("--full-image")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        seconds = build(TRAIN, tree, full=full)
        build(PREPARE, tree, target="prepare", full=full)
    return Image(TRAIN, PREPARE, tuple(packages_mount(full)), seconds, tree)


def _working_tree(folder: Path) -> Path:
    """A copy of this one as git would carry it on, with secrets lying about."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            # With its time: the layers of an unchanged file are taken from the last build.
            shutil.copy2(ROOT / name, folder / name)
    text = "\n".join(f"{name}={value}" for name, value in SECRETS.items())
    for name in (".env", "runs/credentials.env", "ahpa_scale/__pycache__/planted.pyc"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder
