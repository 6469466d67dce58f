# SPDX-License-Identifier: Apache-2.0
"""The command `ahpa-scale evaluate`. Heavy imports are inside it."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from ahpa_scale import console
from ahpa_scale.commands import options
from ahpa_scale.exits import FAILED
from ahpa_scale.leaving import leave_when_asked


def evaluate(
    checkpoints: Annotated[
        str,
        typer.Argument(
            help="A run's save_folder or one checkpoint: local path, s3:// ...",
            callback=options.ANY,
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="Held-out latents: local folder, s3://, gs:// or az:// URL.", callback=options.DATA
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            help="Folder or URL for evaluation.jsonl, evaluation.png and samples.",
            callback=options.ANY,
        ),
    ] = "evaluation",
    newest: Annotated[
        bool, typer.Option("--newest", help="Only the newest whole checkpoint.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Wait for new checkpoints, until the run's last one.")
    ] = False,
    every: Annotated[
        options.Text, typer.Option(help="With --follow: time between two looks.", show_default="1m")
    ] = None,
    until: Annotated[
        options.Text,
        typer.Option(
            help="With --follow: end after the checkpoint of this batch, such as 400000ba."
        ),
    ] = None,
    idle: Annotated[
        options.Text,
        typer.Option(help="With --follow: end if no new one comes for this long, such as 12h."),
    ] = None,
    weights: Annotated[
        options.Text,
        typer.Option(help="'ema' or 'model'.", show_default="averages where there are any"),
    ] = None,
    pictures: Annotated[
        options.Number,
        typer.Option(help="At most this many held-out pictures.", show_default="all"),
    ] = None,
    bins: Annotated[int, typer.Option(help="Equal bins of the noise level.")] = 10,
    samples: Annotated[
        options.Number,
        typer.Option(
            help="Generate this many pictures for FID and other measures.", show_default="none"
        ),
    ] = None,
    reference: Annotated[
        options.Text,
        typer.Option(
            help="With --samples: real pictures: folder, .npz, or whatever `prepare` reads.",
            callback=options.SOURCE,
        ),
    ] = None,
    reference_statistics: Annotated[
        options.Text,
        typer.Option(
            help="With --samples: .npz of mu and sigma instead; distances only.",
            callback=options.ANY,
        ),
    ] = None,
    features: Annotated[
        str,
        typer.Option(
            help="With --samples: networks, such as inception,efficientnet-lite0, or a name of "
            "timm, with =FILE for weights of its own."
        ),
    ] = "inception",
    inception: Annotated[
        options.Text,
        typer.Option(
            help="With --samples: Inception's weights: the library's own file, or .safetensors.",
            show_default="fetched",
            callback=options.LOCAL,
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
    against: Annotated[
        options.Text,
        typer.Option(
            help="Another run's evaluation.jsonl: report when this run is as good as that one.",
            callback=options.ANY,
        ),
    ] = None,
    ep_fid: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="With --samples: report epochs to an unguided FID of at most this."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Pictures per forward pass.")] = 64,
    device: options.Device = "cpu",
    progress: options.Progress = True,
) -> None:
    """Held-out loss, samples, FID and other measures of each checkpoint that has no row yet.

    Exit code 0: all are evaluated. 2: a mistake in the input. After 1 (a disk failed), 75 (a store
    did not answer) and 79 (asked to leave) the same command goes on.
    """
    given = dict(locals())
    from ahpa_scale.config.evaluation import Evaluation

    sampler = options.sampler_options(given)
    wanted = Evaluation(
        **given, sampler=sampler
    )  # wrong options are refused before the slow imports
    from ahpa_scale.commands.evaluate import command

    leave_when_asked()
    try:
        rows = command.evaluate(wanted, console.tell, console.say)
    except command.CutShortError as error:
        problem = " ".join(str(error).split())
        console.say(f"error: {problem}; the same command tries again")
        raise typer.Exit(FAILED) from None
    console.tell(
        f"{out}: {len(rows)} rows in evaluation.jsonl, {command.FIGURE}, {command.SAMPLES}/"
    )
