# SPDX-License-Identifier: Apache-2.0
"""A model of a few parameters with the generator's children, and a quiet CPU Trainer for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from composer import Callback, Trainer
from composer.models import ComposerModel
from composer.utils import dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ahpa_scale.callbacks import SampleGrid
from ahpa_scale.checkpoint.local_copy import open_newest
from ahpa_scale.checkpoint.resume import Resume
from ahpa_scale.models.flow import get_path
from ahpa_scale.models.vae_config import LatentScaling
from ahpa_scale.sampling.settings import SamplerSettings

CLASSES = 3
SUMMARY = {
    "batch": 2,
    "levels": ["fine", "coarse"],
    "weight_GT": [[0.8, None, 0.2], [0.2, None, 0.8]],
    "loss_GT": [[-0.5, None, -0.1], [-0.4, None, -0.3]],
    "count_T": [30, 0, 10],
}


class ToyDiT(nn.Module):
    """Velocity as the DiT gives it, from one convolution and one embedding."""

    in_channels, input_size, null_label, blocks = 2, 4, CLASSES, ()

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(2, 2, 3, padding=1)
        self.label = nn.Embedding(CLASSES + 1, 2)
        self.grid = nn.Parameter(torch.ones(1, 2, 4, 4), requires_grad=False)

    def forward(self, x_BCHW: Tensor, t_B: Tensor, condition_B: Tensor) -> Tensor:
        shift_BC = self.label(condition_B) + t_B[:, None]
        return self.mix(x_BCHW) + shift_BC[:, :, None, None] * self.grid


class ToyHead(nn.Linear):
    """An attachment; its summary is set from outside."""

    last: dict[str, Any]

    def __init__(self) -> None:
        super().__init__(2, 1)
        self.last = {}

    def summary(self) -> dict[str, Any]:
        return self.last


class ToyGenerator(ComposerModel):
    """The children and parameter groups of the real generator."""

    def __init__(self, aligned: bool = True, head_scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dit = ToyDiT()
        self.attachments = nn.ModuleDict({"alignment": ToyHead()} if aligned else {})
        # Composer shards every child as a whole; a container has no forward to gather it in.
        self.attachments._fsdp_wrap = False
        for head in self.attachments.values():
            head._fsdp_wrap = True
        self.head_scale = head_scale

    def backbone_parameters(self):
        return self.dit.parameters()

    def attachment_parameters(self):
        return self.attachments.parameters()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        t_B = batch["x"].new_full((len(batch["x"]),), 0.5)
        outputs = {"v": self.dit(batch["x"], t_B, batch["label"])}
        for name, head in self.attachments.items():
            outputs[name] = (
                head(outputs["v"].detach().mean((2, 3))).square().mean() * self.head_scale
            )
        return outputs

    def loss(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor], *args
    ) -> dict[str, Tensor]:
        parts = {"flow": (outputs["v"] - batch["x"].flip(1)).square().mean()}
        if self.attachments:
            parts["alignment"] = outputs["alignment"]
        return {"total": sum(parts.values()), **parts}

    def eval_forward(self, batch, outputs=None):
        return outputs if outputs is not None else self.forward(batch)

    def get_metrics(self, is_train: bool = False):
        return {}

    def update_metric(self, batch, outputs, metric) -> None:
        del batch, outputs, metric


class ToyData(Dataset):
    """Reproducible pictures of noise."""

    def __init__(self, length: int) -> None:
        self.x = torch.randn(length, 2, 4, 4, generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": self.x[index], "label": index % CLASSES}


def toy_loader(batches: int = 6, batch_size: int = 4) -> DataLoader:
    """``batches`` per epoch; ``batch_size`` is the global one."""
    data = ToyData(batches * batch_size)
    sampler = dist.get_sampler(data, shuffle=False) if dist.get_world_size() > 1 else None
    return DataLoader(data, batch_size=batch_size // dist.get_world_size(), sampler=sampler)


def toy_trainer(
    duration: str = "6ba", *, model: nn.Module | None = None, lr: float = 0.1, **options
) -> Trainer:
    """A Trainer without its own prints, progress bar or network."""
    model = ToyGenerator() if model is None else model
    settings = {
        "model": model,
        "train_dataloader": toy_loader(),
        "optimizers": torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr),
        "max_duration": duration,
        "device": "cpu",
        "progress_bar": False,
        "log_to_console": False,
        "seed": 3,
    }
    return Trainer(**settings | options)


def newest(folder: Path) -> Resume:
    """What takes up the newest checkpoint in a folder."""
    start = open_newest(str(folder), folder.parent / "cache")
    assert start is not None
    return Resume(start, same_run=True)


def clone_weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters by name, without DDP's prefix."""
    named = model.named_parameters()
    return {name.removeprefix("module."): parameter.detach().clone() for name, parameter in named}


class Recorder(Callback):
    """Copies the weights at the start of training, after each batch, and inside evaluations."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []
        self.evaluated: list[dict[str, torch.Tensor]] = []

    def fit_start(self, state, logger):
        self.weights.append(clone_weights(state.model))

    def batch_end(self, state, logger):
        self.weights.append(clone_weights(state.model))

    def eval_batch_end(self, state, logger):
        self.evaluated.append(clone_weights(state.model))


def read_rows(folder: Path, name: str = "metrics.jsonl") -> list[dict]:
    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    lines = (folder / name).read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def toy_grid(folder: Path, **options) -> SampleGrid:
    class Decoder:
        def decode(self, z_BCHW):
            grey_BHW = (z_BCHW.mean(1) * 20 + 128).clamp(0, 255)
            return grey_BHW.to(torch.uint8)[:, None].expand(-1, 3, -1, -1)

    settings = {
        "decoder": Decoder(),
        "scaling": LatentScaling(kind="config", shift=(1.0, 1.0), scale=(0.5, 0.5)),
        "path": get_path("linear"),
        "class_names": [f"class {i}" for i in range(CLASSES)],
        "num_per_class": 3,
        "settings": SamplerSettings(steps=4),
        "batch_size": 2,
    }
    return SampleGrid(folder, options.pop("interval", "2ba"), **settings | options)
