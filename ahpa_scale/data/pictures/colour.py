# SPDX-License-Identifier: Apache-2.0
"""Converts pictures of every Pillow mode to sRGB on white.

Shapes: H W the picture's sides.
"""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from ahpa_scale.data.pictures.profiles import Transform, transform_of

#: Modes that `on_white` converts.
MODES = {
    *("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"),
    *("I", "I;16", "I;16B", "I;16L"),
}
#: Pixels that are converted at a time, so that a large picture needs no full copy in RGBA.
_AT_A_TIME = 1 << 22
#: Pillow multiplies PNG greys of fewer than eight bits by this, but not their tRNS.
_SPREAD = {"1": 255, "L;2": 85, "L;4": 17}


def on_white(image: Image.Image) -> Image.Image:
    """The picture as RGB: 16-bit grey is scaled down, transparent pixels are put on white, and
    colours are brought to sRGB if `image.info` holds their ICC profile.
    """
    transform = transform_of(image)
    if image.mode == "RGB" and not image.has_transparency_data and transform is None:
        return image
    rows = max(1, _AT_A_TIME // image.width)
    if image.height <= rows:
        return _converted(image, transform)
    whole = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        whole.paste(_converted(image.crop(box), transform), box)
    return whole


def _converted(image: Image.Image, transform: Transform | None) -> Image.Image:
    if image.mode.startswith("I"):
        image = _in_eight_bits(image)
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    if transform is not None:
        image = transform(image)
    if alpha is None:
        return image.convert("RGB")
    # Editors leave streaks of colour in fully transparent pixels; these must not show.
    image = image.convert("RGBA")
    image.putalpha(alpha)
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _in_eight_bits(image: Image.Image) -> Image.Image:
    # Pillow would clip 16-bit grey at 255 rather than scale it, and drop its tRNS.
    grey_HW = np.asarray(image)
    white_HW = (grey_HW // 256).clip(0, 255).astype(np.uint8)
    if "transparency" in image.info:
        white_HW[grey_HW == image.info["transparency"]] = 255
    return Image.fromarray(white_HW)


def load_png(image: ImageFile.ImageFile, file: BinaryIO) -> None:
    """Load a PNG so that the transparent colour of its tRNS matches its pixels.

    Pillow keeps that colour in the file's own depth, but the pixels in eight bits.

    Args:
        image: opened, not yet loaded.
        file: the file that it was opened from.
    """
    colour = image.info.get("transparency")
    rawmode = image.tile[0].args if image.tile else None
    if colour is None or rawmode not in (*_SPREAD, "RGB;16B"):
        image.load()
        return
    if isinstance(colour, int):
        image.info["transparency"] = colour * _SPREAD[str(rawmode)]
        image.load()
        return
    image.load()
    del image.info["transparency"]
    _whiten(image, colour, _low_bytes(file))


def _low_bytes(file: BinaryIO) -> Image.Image:
    """The low byte of each 16-bit colour value, which Pillow drops."""
    file.seek(0)
    low = Image.open(file, formats=("PNG",))
    low.tile = [low.tile[0]._replace(args="RGB;16L")]
    low.load()
    return low


def _whiten(image: Image.Image, colour: tuple[int, int, int], low: Image.Image) -> None:
    """Paints pixels of this 16-bit colour white."""
    rows = max(1, _AT_A_TIME // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        same_HW: NDArray[np.bool_] = np.ones((box[3] - top, image.width), bool)
        for channel, value in enumerate(colour):
            high_HW, low_HW = (
                np.asarray(half.crop(box).getchannel(channel)) for half in (image, low)
            )
            same_HW &= (high_HW == value >> 8) & (low_HW == value & 255)
        image.paste("white", box, Image.fromarray(same_HW))
