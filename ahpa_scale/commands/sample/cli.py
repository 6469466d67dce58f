# SPDX-License-Identifier: Apache-2.0
"""The command `ahpa-scale sample`. Heavy imports are inside it."""

from __future__ import annotations

from typing import Annotated

import typer

from ahpa_scale import console
from ahpa_scale.commands import options
from ahpa_scale.leaving import leave_when_asked


def sample(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="A checkpoint, a folder of them (its newest), an exported file or folder, or an "
            "official DiT, SiT or REPA file: path or URL.",
            callback=options.ANY,
        ),
    ],
    out: Annotated[
        str,
        typer.Argument(
            help="Folder of PNG files, or a file that ends in .npz or .png (a grid): path or URL.",
            callback=options.ANY,
        ),
    ],
    num: Annotated[int, typer.Option(help="How many pictures.")] = 64,
    classes: Annotated[
        options.Text,
        typer.Option(
            help="Names or numbers of classes, separated by commas; they take turns.",
            show_default="all; in a grid, the first 8",
        ),
    ] = None,
    format: Annotated[
        options.Text,
        typer.Option(
            help="folder (a folder of PNG files per class), npz (as ADM's evaluator reads it), mds "
            "or grid.",
            show_default="by the ending of OUT",
        ),
    ] = None,
    preset: options.Preset = None,
    method: options.Method = None,
    steps: options.Steps = None,
    guidance_scale: options.GuidanceScale = None,
    guidance_interval: options.GuidanceInterval = None,
    guide: options.Guide = None,
    time_shift: options.TimeShift = None,
    seed: options.Seed = None,
    weights: Annotated[
        options.Text,
        typer.Option(help="'ema' or 'model'.", show_default="averages where there are any"),
    ] = None,
    layout: Annotated[
        options.Text,
        typer.Option("--as", help="dit, sit or repa, for an official file that does not tell it."),
    ] = None,
    vae: Annotated[
        options.Text,
        typer.Option(
            help="Autoencoder: 'demo', a diffusers folder or a hub id.",
            callback=options.VAE,
            show_default="the model's own",
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Pictures per forward pass.")] = 64,
    precision: Annotated[
        str, typer.Option(help="fp32, or amp_bf16: faster on a GPU, other in the last bits.")
    ] = "fp32",
    device: Annotated[
        options.Text,
        typer.Option(help="Torch device.", show_default="a GPU where there is one"),
    ] = None,
    overwrite: options.Overwrite = False,
    progress: options.Progress = True,
) -> None:
    """Draw pictures from a checkpoint, without any data set at hand.

    Picture n is the same for any number of ranks and any batch size: noise and class derive from
    the seed and n. Stopped or killed, the same command goes on. On many GPUs:
    `composer -n 8 -m ahpa_scale sample CHECKPOINT OUT`.
    """
    given = dict(locals())
    from ahpa_scale.config.drawing import Drawing

    sampler = options.sampler_options(given)
    wanted = Drawing(**given, sampler=sampler)  # wrong options are refused before the slow imports
    from ahpa_scale.commands.sample import command

    leave_when_asked()
    command.draw(wanted, console.tell)
