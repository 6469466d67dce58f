# SPDX-License-Identifier: Apache-2.0
"""Publishing a trained VAE: the check of its folder, its PSNR and its model card.

Shapes: B batch, H W height and width.
"""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ahpa_scale.data.demo.mixture import Pixels
from ahpa_scale.errors import UserError
from ahpa_scale.models.vae import FrozenVAE
from ahpa_scale.models.vae_config import load_vae_config

# Settings that the command line offers, and their flags.
_FLAGS = {
    "block_out_channels": "--widths",
    "latent_channels": "--latent-channels",
    "steps": "--steps",
    "batch_size": "--batch-size",
    "lr": "--lr",
    "kl_weight": "--kl-weight",
    "seed": "--seed",
}


@dataclass(frozen=True)
class VAEReport:
    """Results of `train_vae`.

    Attributes:
        psnr: dB per set of unseen pictures, from the mean squared error of 8-bit reconstructions
            with the saved weights.
        scaling_factor: 1 / standard deviation of the latents of training pictures.
        unseen: pictures per set.
    """

    psnr: dict[str, float]
    scaling_factor: float
    unseen: int


def measure_psnr(vae: FrozenVAE, sets: dict[str, Pixels]) -> dict[str, float]:
    """PSNR in dB of decode(encode(x)) per set of uint8 pictures [B, 3, H, W]."""
    result = {}
    for name, pictures in sets.items():
        squares = 0.0
        for start in range(0, len(pictures), 32):
            image_BCHW = torch.from_numpy(pictures[start : start + 32])
            again_BCHW = vae.decode(vae.encode(image_BCHW).mean_BCHW)
            squares += float((again_BCHW.double() - image_BCHW.double()).square().sum())
        result[name] = 10.0 * math.log10(255.0**2 * pictures.size / max(squares, 1e-9))
    return result


def check_free(out: Path, overwrite: bool) -> None:
    """Refuse a folder that is in use, and always one that holds something other than a VAE.

    Raises:
        UserError: out exists and may not be overwritten.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise UserError(f"{out} exists already: choose another folder, or --overwrite it")
    # Raises if the folder is no VAE: overwriting must never delete anything else.
    if load_vae_config(out) is None:
        raise UserError(f"{out} is not a folder: it cannot be overwritten")


def card(out: Path, source: str, settings: Any, report: VAEReport) -> str:
    """The model card: how to make this VAE again, and how good it is.

    Args:
        out: folder of the VAE.
        source: picture source, as given on the command line.
        settings: the training's settings dataclass; values other than the default become flags.
        report: the measured values.
    """
    given, default = asdict(settings), asdict(type(settings)())
    command = f"ahpa-scale train-vae {source} --out {shlex.quote(str(out))}"
    for name, flag in _FLAGS.items():
        if name == "steps" or given[name] != default[name]:
            text = ",".join(map(str, given[name])) if name == "block_out_channels" else given[name]
            command += f" {flag} {text}"
    rows = "\n".join(f"| {name} | {value:.2f} |" for name, value in report.psnr.items())
    return f"""# A small AutoencoderKL

Trained from scratch with ahpa_scale; no other weights went into it. License: Apache-2.0.

```
{command}
```

Scaling factor {report.scaling_factor:.5f}; weights are stored in float16. PSNR in dB of the mean
squared error of 8-bit reconstructions, on {report.unseen} unseen pictures of each set:

| set | PSNR |
|---|---|
{rows}

Settings: `{json.dumps(given, sort_keys=True)}`. Demo pictures come from
`seed` for training and from `seed` + 1 for measuring.
"""
