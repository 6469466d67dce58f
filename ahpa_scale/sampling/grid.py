# SPDX-License-Identifier: Apache-2.0
"""A grid of pictures with a name at the left of each row, saved atomically."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ahpa_scale import storage
from ahpa_scale.errors import UserError

#: Columns of a sample grid.
PER_CLASS = 4
_SMALLEST_TILE = 96
_GAP = 2
_FONT_SIZE = 14
_MARGIN = 6
# Two classes never share sample indices, so a class keeps its pictures when others come or go.
_INDICES_PER_CLASS = 2**20


def class_rows(
    classes: Sequence[int], num_per_class: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The inputs of `sample` for a grid with one row per class.

    Returns:
        Labels and sample indices, both int64 [B], row by row.
    """
    labels_B = torch.tensor(classes, device=device).repeat_interleave(num_per_class)
    place_B = torch.arange(num_per_class, device=device).repeat(len(classes))
    return labels_B, labels_B * _INDICES_PER_CLASS + place_B


def image_grid(
    images_B3HW: Tensor, columns: int, row_labels: Sequence[str] | None = None
) -> Image.Image:
    """Lay pictures out row by row on white.

    Pictures smaller than 96 pixels are enlarged by a whole factor without smoothing, so that every
    pixel of a small picture stays visible.

    Args:
        images_B3HW: uint8 [B, 3, H, W], on any device.
        columns: pictures per row; the last row may be shorter.
        row_labels: one text per row, written at its left.

    Returns:
        An RGB picture.

    Raises:
        UserError: wrong dtype or shape, no picture, or a wrong number of labels.
    """
    if images_B3HW.dtype != torch.uint8 or images_B3HW.ndim != 4 or images_B3HW.shape[1] != 3:
        raise UserError(
            "image_grid needs uint8 pictures [B, 3, H, W],"
            f" got {images_B3HW.dtype} {list(images_B3HW.shape)}"
        )
    count, _, height, width = images_B3HW.shape
    if count < 1 or columns < 1:
        raise UserError(f"image_grid needs pictures and columns, got {count} and {columns}")
    rows = math.ceil(count / columns)
    if row_labels is not None and len(row_labels) != rows:
        raise UserError(f"image_grid has {rows} rows but {len(row_labels)} row labels")
    factor = max(1, _SMALLEST_TILE // min(height, width))
    tile = (width * factor, height * factor)
    font = ImageFont.load_default(_FONT_SIZE)
    left = _label_width(row_labels, font)
    step = (tile[0] + _GAP, tile[1] + _GAP)
    canvas = Image.new("RGB", (left + columns * step[0] - _GAP, rows * step[1] - _GAP), "white")
    for number, picture in enumerate(images_B3HW.permute(0, 2, 3, 1).cpu().contiguous().numpy()):
        row, column = divmod(number, columns)
        enlarged = Image.fromarray(picture).resize(tile, Image.Resampling.NEAREST)
        canvas.paste(enlarged, (left + column * step[0], row * step[1]))
    draw = ImageDraw.Draw(canvas)
    for row, label in enumerate(row_labels or ()):
        middle = row * step[1] + tile[1] // 2
        draw.text((_MARGIN, middle), label, fill="black", font=font, anchor="lm")
    return canvas


def save_image(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write a picture so that a reader sees the old file or the whole new one, never a part.

    Args:
        image: what to save.
        path: local file; its ending chooses the format. Missing folders are made.
    """
    target, content = storage.local_path(path), io.BytesIO()
    image.save(content, Image.registered_extensions()[target.suffix.lower()])
    storage.write_bytes(target, content.getvalue())


def _label_width(
    row_labels: Sequence[str] | None, font: ImageFont.ImageFont | ImageFont.FreeTypeFont
) -> int:
    if not row_labels:
        return 0
    return math.ceil(max(font.getlength(label) for label in row_labels)) + 2 * _MARGIN
