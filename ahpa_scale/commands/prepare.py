# SPDX-License-Identifier: Apache-2.0
"""``ahpa-scale prepare``: encodes pictures into shards of latents and encoder levels."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from ahpa_scale import console
from ahpa_scale.commands import options


def prepare(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder of class folders, *.tar, *.parquet, .npz, MDS, idx, hf:NAME[:SPLIT]; or "
            "'demo'.",
            callback=options.SOURCE,
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            help="Local folder, s3://, gs:// or az:// URL to write.", callback=options.ANY
        ),
    ],
    vae: Annotated[
        str,
        typer.Option(
            help="Diffusers folder, hub id, hub id@revision or 'demo'.", callback=options.VAE
        ),
    ] = "demo",
    size: Annotated[int, typer.Option(help="Side of the cropped pictures, in pixels.")] = 256,
    grid: Annotated[
        options.Number,
        typer.Option(help="Tokens per side of stored maps (default: half the latent's side)."),
    ] = None,
    kind: Annotated[
        str, typer.Option(help="'latents', or 'images' for online encoding.")
    ] = "latents",
    scaling: Annotated[
        str, typer.Option(help="'config' (the VAE's factors) or 'channel' (measured).")
    ] = "config",
    level: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Encoder level to store; repeat for more (default: all)."),
    ] = None,
    codec: Annotated[
        str,
        typer.Option(help="How levels come to the token grid: 'residual', 'detail' or 'pooled'."),
    ] = "residual",
    level_dims: Annotated[
        options.Number,
        typer.Option(help="Dimensions per token for each group of levels (default: 64)."),
    ] = None,
    sample: Annotated[int, typer.Option(help="Pictures that the codec is fitted to.")] = 512,
    prior_dtype: Annotated[
        options.Text,
        typer.Option(help="'int8', 'float16' or 'bfloat16' (default: int8; float16 if pooled)."),
    ] = None,
    features: Annotated[
        options.Text,
        typer.Option(
            help="Folder of .npy features of another encoder; 'oracle' for the demo.",
            callback=options.LOCAL,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Pictures per encoder call.")] = 64,
    limit: options.Limit = None,
    rejects: Annotated[
        float, typer.Option(help="Share of the pictures that may be unreadable.")
    ] = 0.01,
    shuffle_seed: Annotated[
        options.Number,
        typer.Option(help="Order of stored pictures (default: 0)."),
    ] = None,
    exif: options.Exif = None,
    least_side: options.LeastSide = None,
    classes_from: options.ClassesFrom = None,
    class_depth: options.ClassDepth = None,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    preset: Annotated[
        options.Text,
        typer.Option(help="Demo only: easy, medium or hard (default: easy)."),
    ] = None,
    num_samples: Annotated[
        options.Number,
        typer.Option(help="Demo only: how many pictures (default: 10000)."),
    ] = None,
    seed: Annotated[options.Number, typer.Option(help="Demo only (default: 0).")] = None,
    start: Annotated[
        options.Number,
        typer.Option(help="Demo only: first index, for a second split (default: 0)."),
    ] = None,
    overwrite: options.Overwrite = False,
    device: options.Device = "cpu",
    devices: Annotated[
        options.Text,
        typer.Option(
            help="Several, a process on each: kind and number, such as cuda:8 or cpu:2; instead of "
            "--device."
        ),
    ] = None,
    shard_size: Annotated[str, typer.Option(help="Bytes per shard, such as 64mb.")] = "64mb",
    parts: Annotated[
        options.Number,
        typer.Option(help="Prepare one of this many parts; the last one to end joins them."),
    ] = None,
    part: Annotated[
        options.Number,
        typer.Option(help="Which part, from 0."),
    ] = None,
    report: Annotated[
        bool,
        typer.Option(
            "--report", help="Only try codecs on the sample and print a table; write nothing."
        ),
    ] = False,
    workers: Annotated[int, typer.Option(help="Threads that read and crop pictures.")] = 4,
    progress: options.Progress = True,
) -> None:
    """Encode pictures once into shards of latents and encoder levels."""
    given = dict(locals())
    given["vae_path"] = given.pop("vae")
    given["levels"] = tuple(given.pop("level") or ()) or None
    count, index = given.pop("parts"), given.pop("part")
    only_report = given.pop("report")
    from ahpa_scale.data.settings import PrepareSettings, chosen_part

    # Wrong options are refused before the slow imports.
    settings = PrepareSettings(**given)
    chosen = chosen_part(index, count)
    if only_report:
        from ahpa_scale.data.codec_report import codec_report, report_lines

        for line in report_lines(codec_report(settings), settings.sample):
            console.tell(line)
        return
    if chosen is None:
        from ahpa_scale.data.prepare import prepare as prepare_all

        card = prepare_all(tell=options.remark, **given)
    else:
        from ahpa_scale.data.parts import prepare_part

        joined = prepare_part(part=chosen, tell=options.remark, **given)
        if joined is None:
            console.tell(
                f"{out}: part {chosen.index} of {chosen.count} is there; others are missing"
            )
            return
        card = joined
    console.tell(
        f"{out}: {card.num_samples} pictures, {card.num_classes} classes, kind {card.kind}, "
        f"latent {'x'.join(map(str, card.latent_shape))}, grid {card.grid}, "
        f"{len(card.levels)} levels"
    )
