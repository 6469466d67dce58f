# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the data tests, a plug-in: a random VAE, a picture folder and its data set."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from job import CLI, run
from PIL import Image

from ahpa_scale.data.prepare import prepare
from ahpa_scale.data.stream import build_loader

SIZE, GRID, COUNT = 16, 2, 48
LEVELS = (
    "encoder.down_blocks.0.resnets.0",
    "encoder.down_blocks.1.resnets.0",
    "encoder.down_blocks.2.resnets.0",
    "encoder.mid_block",
)


@pytest.fixture(scope="session")
def vae_path(tmp_path_factory) -> str:
    """A random f4 autoencoder of 3 resolutions, saved as diffusers saves one."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model = AutoencoderKL(
        block_out_channels=(8, 16, 24),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
    )
    folder = tmp_path_factory.mktemp("vae")
    model.save_pretrained(folder)
    return str(folder)


def save_pictures(root: Path, count: int = COUNT) -> None:
    """Pictures of several sizes, modes and formats in three classes, some in deeper folders."""
    rng = np.random.default_rng(0)
    folders = ["ant", "bee", "bee/deeper/still", "cow"]
    suffixes = ["png", "jpg", "webp", "bmp", "JPEG"]
    modes = ["RGB", "L", "P", "RGBA"]
    for i in range(count):
        sides = rng.integers(10, 60, size=2)
        image = Image.fromarray(rng.integers(0, 256, (*sides, 3), dtype=np.uint8))
        suffix = suffixes[i % len(suffixes)]
        if suffix == "png":
            image = image.convert(modes[i // len(suffixes) % len(modes)])
        path = root / folders[i % len(folders)] / f"{i:03d}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    (root / "ant" / "notes.txt").write_text("no picture")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    save_pictures(root)
    return root


@pytest.fixture(scope="session")
def prepared(pictures, vae_path, tmp_path_factory) -> str:
    """A folder's data set of several shards."""
    out = str(tmp_path_factory.mktemp("prepared") / "set")
    options = {"size": SIZE, "batch_size": 10, "shard_size": "20kb", "scaling": "channel"}
    prepare(str(pictures), out, vae_path=vae_path, progress=False, **options)
    return out


@pytest.fixture(scope="session")
def pooled(pictures, vae_path, tmp_path_factory) -> str:
    """The same with mean-pooled levels, as they were before there were codecs."""
    out = str(tmp_path_factory.mktemp("pooled") / "set")
    options = {"size": SIZE, "batch_size": 10, "scaling": "channel", "codec": "pooled"}
    prepare(str(pictures), out, vae_path=vae_path, progress=False, **options)
    return out


@pytest.fixture(scope="session")
def demo_data(tmp_path_factory) -> Callable[[int], Path]:
    """Makes folders of the demo's data, of so many samples; a test may damage its own. Each size is
    prepared once for all of pytest's processes.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def make(num_samples: int) -> Path:
        kept = shared / f"demo-{num_samples}"
        with FileLock(f"{kept}.lock"):
            if not kept.exists():
                begun = tmp_path_factory.mktemp("begun") / "demo"
                done = run(CLI, "prepare", "demo", "--size", 32, "--out", begun,
                           "--num-samples", num_samples, "--no-progress")  # fmt: skip
                assert done.returncode == 0, done.stderr
                begun.rename(kept)
        return Path(shutil.copytree(kept, tmp_path_factory.mktemp("data") / "demo"))

    return make


def batches(url: str, **options: object) -> list[dict[str, torch.Tensor]]:
    return list(build_loader(url, **{"batch_size": 8, "shuffle": False, **options}))


def everything(found: list[dict[str, torch.Tensor]], key: str) -> torch.Tensor:
    return torch.cat([batch[key] for batch in found])


def save_features(pictures: Path, folder: Path, largest: float = 1.0, flat: bool = False) -> None:
    rng = np.random.default_rng(0)
    for path in pictures.rglob("*.*"):
        target = (folder / path.relative_to(pictures)).with_suffix(".npy")
        target.parent.mkdir(parents=True, exist_ok=True)
        shape = (GRID * GRID, 5) if flat else (5, GRID, GRID)
        np.save(target, (largest * rng.uniform(-1, 1, shape)).astype(np.float32))
