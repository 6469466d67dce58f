# SPDX-License-Identifier: Apache-2.0
"""``ahpa-scale train-vae``: trains a small autoencoder on a user's pictures."""

from __future__ import annotations

from typing import Annotated

import typer

from ahpa_scale import console
from ahpa_scale.commands import options
from ahpa_scale.errors import UserError


def train_vae(
    out: Annotated[str, typer.Option(help="Diffusers folder to write.", callback=options.LOCAL)],
    source: Annotated[
        str,
        typer.Argument(help="Pictures as for prepare, or 'demo'.", callback=options.SOURCE),
    ] = "demo",
    size: Annotated[
        options.Number,
        typer.Option(help="All but the demo: side of the cropped pictures, in pixels."),
    ] = None,
    widths: Annotated[
        str, typer.Option(help="Encoder widths, one per resolution, fine to coarse.")
    ] = "32,64,96",
    latent_channels: Annotated[int, typer.Option(help="Channels of the latent.")] = 8,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 3000,
    batch_size: Annotated[int, typer.Option(help="Pictures per step.")] = 16,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    kl_weight: Annotated[float, typer.Option(help="Weight of the KL divergence.")] = 1e-4,
    seed: Annotated[int, typer.Option(help="Seed of initialisation, order and noise.")] = 0,
    overwrite: options.Overwrite = False,
    device: options.Device = "cpu",
    progress: options.Progress = True,
) -> None:
    """Train a small autoencoder, for pictures that no published one fits."""
    block_out_channels = _numbers(widths, "widths")
    if (source == "demo") != (size is None):
        raise UserError("give size with stored pictures, and only then")
    from ahpa_scale.data.sources import SourceOptions, open_source
    from ahpa_scale.data.vae_training import VAETraining
    from ahpa_scale.data.vae_training import train_vae as train

    settings = VAETraining(
        block_out_channels=block_out_channels,
        latent_channels=latent_channels,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        kl_weight=kl_weight,
        seed=seed,
        device=device,
    )
    pictures = source if size is None else open_source(source, SourceOptions(size=size))
    report = train(
        out, pictures, settings, overwrite=overwrite, progress=progress, tell=options.remark
    )
    quality = ", ".join(f"{name} {value:.1f} dB" for name, value in report.psnr.items())
    console.tell(f"{out}: PSNR {quality}; scaling factor {report.scaling_factor:.5f}")


def _numbers(text: str, name: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"{name} must be whole numbers with commas, not {text!r}") from None
