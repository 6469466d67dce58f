# SPDX-License-Identifier: Apache-2.0
"""Some of a run's sample grids, small enough for a page."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ahpa_scale.run_files import SAMPLES_FOLDER

#: How many pictures a run shows, spread evenly from its first to its last.
MOST = 8
_NAME = re.compile(rf"{SAMPLES_FOLDER}/step-(\d{{1,15}})\.png", re.ASCII)
#: Longest side in pixels.
_SIDE = 720
_MOST_PIXELS = 64_000_000
_QUALITY = 85


@dataclass(frozen=True)
class Sample:
    """A picture after some batches.

    Attributes:
        batch: batches trained.
        width, height: in pixels.
        url: the picture itself, as a ``data:`` URL.
    """

    batch: int
    width: int
    height: int
    url: str


def choose(names: Mapping[str, int], most: int = MOST) -> list[tuple[int, str]]:
    """Batch and file name of some sample grids, the first and the last among them."""
    found = sorted(
        (int(match[1]), match[0]) for match in map(_NAME.fullmatch, names) if match is not None
    )
    if len(found) <= most:
        return found
    return [found[(len(found) - 1) * place // (most - 1)] for place in range(most)]


def shrink(path: Path, batch: int) -> Sample:
    """The picture, scaled down and written anew: nothing of the file itself reaches the page.

    Raises:
        ValueError: the file is no whole PNG, or too large.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG",)) as picture:
            if picture.width * picture.height > _MOST_PIXELS:
                raise ValueError(f"{picture.width} x {picture.height} pixels are too many")
            small = picture.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError("it is no whole PNG") from error
    small.thumbnail((_SIDE, _SIDE))
    content = io.BytesIO()
    small.save(content, format="WEBP", quality=_QUALITY)
    encoded = base64.b64encode(content.getvalue()).decode()
    return Sample(batch, small.width, small.height, f"data:image/webp;base64,{encoded}")
