# SPDX-License-Identifier: Apache-2.0
"""``ahpa-scale diagnose``: the options; the work is in `diagnosis`."""

from __future__ import annotations

from typing import Annotated

import typer

from ahpa_scale import console
from ahpa_scale.commands import options
from ahpa_scale.leaving import leave_when_asked


def diagnose(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="A run's checkpoint or output folder, or a DiT's safetensors.",
            callback=options.ANY,
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="Prepared data set: local folder, s3://, gs:// or az:// URL.",
            callback=options.DATA,
        ),
    ],
    out: Annotated[
        str, typer.Option(help="Folder for the map and its figure.", callback=options.ANY)
    ] = "recoverability",
    config: Annotated[
        options.Text,
        typer.Option(
            help="The run's config.yaml (default: beside the checkpoint or above it).",
            callback=options.LOCAL,
        ),
    ] = None,
    levels: Annotated[
        options.Text,
        typer.Option(help="Levels with commas, also latent, external, self.<block>."),
    ] = None,
    source: Annotated[
        options.Text,
        typer.Option(help="Levels of one source: vae, latent, external, self (default: all kept)."),
    ] = None,
    pictures: Annotated[int, typer.Option(help="At most this many pictures.")] = 2048,
    bins: Annotated[int, typer.Option(help="Equal bins of the noise level.")] = 10,
    device: options.Device = "cpu",
    progress: options.Progress = True,
) -> None:
    """Map which levels a trained model shows, in which block, at which noise."""
    from ahpa_scale.config.diagnosis import Diagnosis

    names = tuple(name.strip() for name in (levels or "").split(",") if name.strip())
    # Wrong options are refused before the slow imports.
    wanted = Diagnosis(checkpoint, data, config, names, source, pictures, bins, device, progress)
    from ahpa_scale.commands import diagnosis

    leave_when_asked()
    recoverability = diagnosis.diagnose(wanted, out)
    console.tell(
        f"{out}: {', '.join(diagnosis.NAMES)}; {len(recoverability.levels)} levels, "
        f"{len(recoverability.blocks)} blocks, {recoverability.bins} bins of t, "
        f"{recoverability.pictures} pictures"
    )
