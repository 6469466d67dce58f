# SPDX-License-Identifier: Apache-2.0
"""Small files as the official DiT, SiT, REPA and diffusers code saves them.

Legend: B batch, C channels, H W.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ahpa_scale.models.dit import DiT, build_dit


def filled(seed: int = 0, **options: Any) -> DiT:
    """A small DiT with no weight at zero."""
    given = {"input_size": 8, "depth": 2, "num_classes": 10, **options}
    model = build_dit("tiny/2", **given)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name != "pos_embed":
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    return model.requires_grad_(False)


def inputs(batch: int = 3, channels: int = 4) -> tuple[Tensor, ...]:
    x_BCHW = torch.randn(batch, channels, 8, 8, generator=torch.Generator().manual_seed(1))
    return x_BCHW, torch.tensor([0.1, 0.5, 0.9][:batch]), torch.arange(batch)


def trained_by(
    path: Path, ema: DiT, args: dict[str, Any], projectors: int = 0, **more: Any
) -> Path:
    """What the official training scripts save: averages, trained weights, optimizer, arguments."""
    model = filled(seed=5, depth=ema.depth, learn_sigma=ema.out_channels != ema.in_channels)
    extra = {f"projectors.0.{2 * n}.weight": torch.ones(4, 4) for n in range(projectors)}
    optimizer = torch.optim.AdamW(model.parameters())
    content = {
        "model": OrderedDict({f"module.{k}": v for k, v in model.state_dict().items()}, **extra),
        "ema": OrderedDict(ema.state_dict(), **extra),
        "opt": optimizer.state_dict(),
        "args": argparse.Namespace(**args),
        **more,
    }
    torch.save(content, path)
    return path


SIT_ARGS = {"model": "SiT-XL/2", "image_size": 64, "num_classes": 10, "vae": "ema"}
SIT_ARGS |= {"path_type": "Linear", "prediction": "velocity", "train_eps": None}
DIT_ARGS = {"model": "DiT-XL/2", "image_size": 64, "num_classes": 10, "vae": "mse"}
REPA_ARGS = {"model": "SiT-XL/2", "num_classes": 10, "resolution": 64, "path_type": "cosine"}
REPA_ARGS |= {"prediction": "v", "proj_coeff": 0.5, "enc_type": "dinov2-vit-b"}
