# SPDX-License-Identifier: Apache-2.0
"""What several test modules share: a small generator, batches for it, and a Trainer around both.

Legend: B batch, C latent channels, H W latent side, g token grid.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

LEVELS = {
    "encoder.down_blocks.0.resnets.0": 8,
    "encoder.down_blocks.1.resnets.0": 12,
    "encoder.mid_block": 12,
}

SLOW = Path(__file__).with_name("slow.txt")

pytest_plugins = [
    "bad_stores",
    "checkpoint_runs",
    "data_sets",
    "evaluated_run",
    "image",
    "report_pages",
    "small_run",
]

# Nothing in the tests may wait for a login or a server.
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# What the processor says of itself is believed: each process that compiles would start a Python
# that imports torch, once for each set of instructions, to try them.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")

# No test hangs on how fast a machine is, or what else it does.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="leave out the modules of slow.txt")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    slow = SLOW.read_text().splitlines() if config.getoption("--quick") else ()
    return True if collection_path.name in slow else None


class ToyLatents(Dataset):
    """Cached latents of class-dependent blobs: learnable in a few steps, with priors that match."""

    def __init__(self, num_samples: int = 64, channels: int = 4, side: int = 8) -> None:
        self.num_samples, self.channels, self.side = num_samples, channels, side

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        label = index % 10
        shape = (self.channels, self.side, self.side)
        mean = torch.randn(shape, generator=generator) * 0.1
        mean[label % self.channels] += label / 5 - 1
        moments = torch.cat([mean, torch.full(shape, 0.05)]).half()
        sample = {"index": index, "epoch": 0, "label": label, "moments": moments}
        for name, width in LEVELS.items():
            map_Cgg = torch.randn(width, 4, 4, generator=generator) + mean.mean()
            sample[f"prior.{name}"] = map_Cgg.half()
        return sample


@pytest.fixture
def toy_batch() -> dict[str, Tensor]:
    return next(iter(DataLoader(ToyLatents(), batch_size=8)))


@pytest.fixture
def make_generator() -> Callable[..., Any]:
    from ahpa_scale.models.dit import build_dit
    from ahpa_scale.models.generator import DiffusionGenerator
    from ahpa_scale.models.vae_config import LatentScaling

    def make(seed: int = 0, **settings: Any) -> DiffusionGenerator:
        torch.manual_seed(seed)
        dit = build_dit("tiny/2", input_size=8, num_classes=10, depth=3, width=32, heads=2)
        scaling = LatentScaling("config", (0.0,) * 4, (1.0,) * 4)
        return DiffusionGenerator(dit, scaling=scaling, **settings)

    return make


@pytest.fixture
def make_trainer(make_generator: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    from composer import Trainer

    trainers: list[Trainer] = []

    def make(model: Any = None, **settings: Any) -> Trainer:
        model = model or make_generator()
        defaults: dict[str, Any] = {
            "train_dataloader": DataLoader(ToyLatents(), batch_size=16),
            "optimizers": torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0),
            "max_duration": "4ba",
            "device": "cpu",
            "progress_bar": False,
            "auto_log_hparams": False,
            "seed": 3,
        }
        trainers.append(Trainer(model=model, **{**defaults, **settings}))
        return trainers[-1]

    yield make
    for trainer in trainers:
        trainer.close()
