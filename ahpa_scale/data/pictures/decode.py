# SPDX-License-Identifier: Apache-2.0
"""Reads picture files as upright RGB, or says why it can't. The files are not trusted."""

from __future__ import annotations

import errno
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from ahpa_scale.data.pictures.colour import load_png, on_white
from ahpa_scale.data.pictures.crop import center_crop
from ahpa_scale.data.pictures.files import open_regular, shown
from ahpa_scale.errors import UserError

#: Formats that files may have, whatever their suffix says. Pillow's other decoders are never used:
#: the one of EPS runs Ghostscript.
FORMATS = ("BMP", "JPEG", "PNG", "WEBP")
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
#: Limits of one picture, which then takes about a gigabyte; libwebp keeps three copies itself.
_MOST_PIXELS, _MOST_WEBP_PIXELS = 1 << 27, 1 << 26
#: Above this many pixels, only one picture is in memory at a time.
_LARGE = 1 << 25
_ONE_LARGE = threading.Lock()
#: Limit of a file: WebP files and JPEG markers are read into memory at their full length.
_MOST_BYTES = 1 << 29
# What Pillow raises on damaged files, depending on format and on where the damage is.
_BROKEN = (
    Image.DecompressionBombError,
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
)
#: Errors of the machine, which say nothing about the picture.
_OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow warns even about pictures from phones; we have our own limit above.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


class UnreadablePictureError(UserError):
    """A file that holds no readable picture.

    Attributes:
        name: path of the picture below its folder.
        reason: why it can't be read, in a few words.
    """

    def __init__(self, path: str | os.PathLike[str], name: str, reason: str) -> None:
        super().__init__(f"cannot read the picture {shown(os.fspath(path))}: {reason}")
        self.name, self.reason = name, reason


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read a picture as viewers show it, in RGB: turned as its EXIF says, converted from grey,
    palette or CMYK, and on white if it is transparent. Of an animation, read the first frame.

    Raises:
        UnreadablePictureError: the file is no picture or is damaged; the message names it.
    """
    with _picture(path, os.fspath(path)) as image:
        return image


def read_square(folder: str | os.PathLike[str], name: str, size: int) -> NDArray[np.uint8]:
    """One picture of a folder, read and cropped, uint8 [size, size, 3].

    Raises:
        UnreadablePictureError: the file is no picture or is damaged; the message names it.
    """
    with _picture(os.path.join(folder, name), name) as image:
        return center_crop(image, size)


@contextmanager
def _picture(path: str | os.PathLike[str], name: str) -> Iterator[Image.Image]:
    """The picture; while a large one is in use, no other large one is read."""
    with _explained(path, name):
        file = open_regular(path)
    with file:
        with _explained(path, name):
            opened = _opened(file)
        large = opened.width * opened.height > _LARGE
        with _ONE_LARGE if large else nullcontext():
            with _explained(path, name):
                orientation = _load(opened, file)
            image = on_white(opened)
            del opened
            if orientation in _TURNS:
                image = image.transpose(_TURNS[orientation])
            # Without its EXIF, nobody turns the picture again.
            image.info = {}
            yield image


def _opened(file: BinaryIO) -> ImageFile.ImageFile:
    """The picture after its header is checked, before memory is allocated for pixels."""
    size = os.fstat(file.fileno()).st_size
    if not 0 < size <= _MOST_BYTES:
        raise ValueError(f"it has {size} bytes, and may have 1 to {_MOST_BYTES}")
    image = Image.open(file, formats=FORMATS)
    most = _MOST_WEBP_PIXELS if image.format == "WEBP" else _MOST_PIXELS
    if image.width * image.height > most:
        raise ValueError(f"it has {image.width}x{image.height} pixels, and may have {most}")
    # Pillow decodes these in Python, where a few bytes can cost minutes and gigabytes.
    if image.tile and image.tile[0].codec_name == "bmp_rle" and max(image.size) > 4096:
        raise ValueError("a run-length encoded BMP may have 4096 pixels a side")
    return image


def _load(image: ImageFile.ImageFile, file: BinaryIO) -> int:
    """Decodes the pixels; returns the EXIF orientation, or 1 if there is none."""
    if image.format == "PNG":
        load_png(image, file)
    else:
        image.load()
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _BROKEN:
        # A good picture may have a broken EXIF block.
        return 1
    return orientation if isinstance(orientation, int) else 1


@contextmanager
def _explained(path: str | os.PathLike[str], name: str) -> Iterator[None]:
    """Turns an error of Pillow or the disk into one that names the picture and the reason."""
    try:
        yield
    except UnidentifiedImageError as error:
        reason = f"it holds no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} picture"
        raise UnreadablePictureError(path, name, reason) from error
    except _BROKEN as error:
        if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
            raise
        told = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UnreadablePictureError(path, name, " ".join(str(told).split())) from error
