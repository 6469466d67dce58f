# SPDX-License-Identifier: Apache-2.0
"""``ahpa-scale unpack-idx`` and ``demo-images``: folders of pictures to begin with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ahpa_scale import console
from ahpa_scale.commands import options

if TYPE_CHECKING:
    from ahpa_scale.data.demo import DemoPicture

SHEET = 64  # pictures on a contact sheet


def unpack_idx(
    folder: Annotated[
        str,
        typer.Argument(
            help="Folder of the four idx files, gzipped or not.", callback=options.LOCAL
        ),
    ],
    out: Annotated[str, typer.Option(help="Image folder to make.", callback=options.LOCAL)],
    names: Annotated[str, typer.Option(help="Class names: 'fashion' or 'digits'.")] = "fashion",
    limit: options.Limit = None,
) -> None:
    """Turn MNIST or Fashion-MNIST files into an image folder with train and test."""
    from ahpa_scale.data.idx import unpack_idx as unpack

    counts = unpack(folder, out, names=names, limit=limit)
    console.tell(f"{out}: " + ", ".join(f"{count} {split}" for split, count in counts.items()))


def demo_images(
    out: Annotated[str, typer.Option(help="Folder to make.", callback=options.LOCAL)],
    preset: Annotated[str, typer.Option(help="easy, medium or hard.")] = "easy",
    num_samples: Annotated[int, typer.Option(min=1, help="How many pictures.")] = 64,
    size: Annotated[int, typer.Option(help="Side of the pictures, in pixels.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the drawings.")] = 0,
    start: Annotated[int, typer.Option(min=0, help="First index.")] = 0,
) -> None:
    """Draw demo pictures into class folders, with a contact sheet and their factors."""
    from ahpa_scale.data.demo import DemoSpec, render
    from ahpa_scale.disk_errors import naming
    from ahpa_scale.storage import atomic_folder

    spec = DemoSpec.preset(preset, size=size)
    with naming(out), atomic_folder(out) as room:
        _write_demo(room, [render(spec, seed, start + i) for i in range(num_samples)])
    console.tell(f"{out}: {num_samples} pictures, contact-sheet.png, factors.jsonl")


def _write_demo(room: Path, pictures: list[DemoPicture]) -> None:
    import numpy as np
    import torch
    from PIL import Image

    from ahpa_scale.sampling.grid import image_grid

    for picture in pictures:
        name = str(picture.factors["class"]).replace(" ", "-")
        folder = room / f"{picture.label:02d}-{name}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(picture.image).save(folder / f"{picture.factors['index']:06d}.png")
    lines = [json.dumps(picture.factors) + "\n" for picture in pictures]
    (room / "factors.jsonl").write_text("".join(lines), encoding="utf-8")
    shown_BHWC = torch.from_numpy(np.stack([p.image for p in pictures[:SHEET]]))
    image_grid(shown_BHWC.permute(0, 3, 1, 2), columns=8).save(room / "contact-sheet.png")
