# SPDX-License-Identifier: Apache-2.0
"""Reads encoded pictures as upright RGB, or says why it can't. The bytes are not trusted.

All sources come through here, so a picture has the same pixels wherever it was stored.

Shapes: H W the picture's sides.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import AvifImagePlugin, ExifTags, Image, ImageFile, UnidentifiedImageError

from ahpa_scale.data.pictures.colour import MODES, load_png, on_white
from ahpa_scale.data.pictures.crop import center_crop
from ahpa_scale.data.pictures.files import open_regular, shown
from ahpa_scale.data.pictures.heic import is_heic, open_heic
from ahpa_scale.errors import UserError
from ahpa_scale.unreachable import UnreachableError

#: Formats that files may have, whatever their suffix says. Pillow's other decoders are never used:
#: the one of EPS runs Ghostscript.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
_TOLD_FORMATS = "AVIF, BMP, GIF, HEIC, JPEG, PNG, TIFF or WEBP"
SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jpeg", ".jpg", ".png", ".tif", ".tiff"),
    ".webp",
)
#: Limits of one picture, which then takes about a gigabyte; libwebp keeps three copies itself.
_MOST_PIXELS, _MOST_WEBP_PIXELS = 1 << 27, 1 << 26
#: Above this many pixels, only one picture is in memory at a time.
_LARGE = 1 << 25
_ONE_LARGE = threading.Lock()
#: Limit of a file: WebP files and JPEG markers are read into memory at their full length.
MOST_BYTES = 1 << 29
# What Pillow raises on damaged files, depending on format and on where the damage is.
_BROKEN = (
    Image.DecompressionBombError,
    OSError,
    RuntimeError,
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
# Callers read several pictures at once already.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1


@dataclass(frozen=True)
class DecodeOptions:
    """How pictures are read.

    Attributes:
        exif: whether to turn a picture as its EXIF says, and to bring the colours of its ICC
            profile to sRGB. ADM's data set does neither.
        least_side: a picture with a shorter side than this is rejected.
    """

    exif: bool = True
    least_side: int = 1


@dataclass(frozen=True)
class Decoded:
    """A picture, read and cropped.

    Attributes:
        image_HWC: uint8 RGB, H = W.
        is_first: whether more frames or pages followed, which are left out.
    """

    image_HWC: NDArray[np.uint8]
    is_first: bool = False


_AS_VIEWERS = DecodeOptions()


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
    """Read a picture as viewers show it, in RGB: turned as its EXIF says, in sRGB, converted from
    grey, palette or CMYK, and on white if it is transparent. Of several frames, read the first.

    Raises:
        UnreadablePictureError: the file is no picture or is damaged; the message names it.
    """
    where = os.fspath(path)
    with _picture(lambda: open_regular(path), where, where, _AS_VIEWERS) as (image, _):
        return image


def read_square(folder: str | os.PathLike[str], name: str, size: int) -> NDArray[np.uint8]:
    """One picture of a folder, read and cropped, uint8 [size, size, 3].

    Raises:
        UnreadablePictureError: the file is no picture or is damaged; the message names it.
    """
    path = os.path.join(folder, name)
    return decode_square(lambda: open_regular(path), path, name, size).image_HWC


def decode_square(
    opener: Callable[[], BinaryIO | NDArray[np.uint8]],
    where: str,
    name: str,
    size: int,
    how: DecodeOptions = _AS_VIEWERS,
) -> Decoded:
    """Read and crop a picture.

    Args:
        opener: opens its encoded bytes, or gives its pixels, uint8 [H, W, 3] or [H, W]; an OSError
            or ValueError means that it can't be read.
        where: the picture, for messages.
        name: its name in its source, for the list of rejects.
        size: side of the cropped picture.
        how: options.

    Raises:
        UnreadablePictureError: it is no picture, is damaged or too small; the message names it.
    """
    with _picture(opener, where, name, how) as (image, is_first):
        return Decoded(center_crop(image, size), is_first)


def shorter_side(opener: Callable[[], BinaryIO | NDArray[np.uint8]], where: str) -> int:
    """The shorter side of a picture, in pixels; arguments and errors as for `decode_square`."""
    with _picture(opener, where, where, _AS_VIEWERS) as (image, _):
        return min(image.size)


@contextmanager
def _picture(
    opener: Callable[[], BinaryIO | NDArray[np.uint8]], where: str, name: str, how: DecodeOptions
) -> Iterator[tuple[Image.Image, bool]]:
    """The picture, and whether more frames follow; while a large one is in use, no other large one
    is read.
    """
    with _explained(where, name):
        file = opener()
        if isinstance(file, np.ndarray):
            pixels = Image.fromarray(file).convert("RGB")
            _check_side(pixels, how.least_side)
    if isinstance(file, np.ndarray):
        yield pixels, False
        return
    with file:
        with _explained(where, name):
            opened = _opened(file)
            _check_side(opened, how.least_side)
        large = opened.width * opened.height > _LARGE
        with _ONE_LARGE if large else nullcontext():
            with _explained(where, name):
                orientation = _load(opened, file, how.exif)
            image = on_white(opened)
            is_first = _has_more(opened)
            del opened
            if orientation in _TURNS:
                image = image.transpose(_TURNS[orientation])
            # Without its EXIF, nobody turns the picture again.
            image.info = {}
            yield image, is_first


def _check_side(image: Image.Image, least_side: int) -> None:
    if min(image.size) < least_side:
        raise ValueError(
            f"it has {image.width}x{image.height} pixels, and its shorter side must have "
            f"{least_side}"
        )


def _opened(file: BinaryIO) -> ImageFile.ImageFile:
    """The picture after its header is checked, before memory is allocated for pixels."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if not 0 < size <= MOST_BYTES:
        raise ValueError(f"it has {size} bytes, and may have 1 to {MOST_BYTES}")
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        if not is_heic(file):
            raise
        image = open_heic(file)
    most = _MOST_WEBP_PIXELS if image.format == "WEBP" else _MOST_PIXELS
    if image.width * image.height > most:
        raise ValueError(f"it has {image.width}x{image.height} pixels, and may have {most}")
    # Pillow decodes these in Python, where a few bytes can cost minutes and gigabytes.
    if image.tile and image.tile[0].codec_name == "bmp_rle" and max(image.size) > 4096:
        raise ValueError("a run-length encoded BMP may have 4096 pixels a side")
    return image


def _load(image: ImageFile.ImageFile, file: BinaryIO, exif: bool) -> int:
    """Decodes the pixels; returns the orientation that they are to be turned to, 1 for none."""
    if image.format == "PNG":
        load_png(image, file)
    else:
        image.load()
    if image.mode not in MODES or (image.format == "TIFF" and image.mode == "I"):
        raise ValueError(f"its pixels are of Pillow's mode {image.mode}, and not of 8 or 16 bits")
    if not exif:
        image.info.pop("icc_profile", None)
        return 1
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _BROKEN:
        # A good picture may have a broken EXIF block.
        return 1
    return orientation if isinstance(orientation, int) else 1


def _has_more(image: ImageFile.ImageFile) -> bool:
    """Whether frames or pages follow. Those of an MPO don't count: a camera's previews and maps."""
    with suppress(*_BROKEN):
        return image.format != "MPO" and bool(getattr(image, "is_animated", False))
    return False


@contextmanager
def _explained(path: str, name: str) -> Iterator[None]:
    """Turns an error of Pillow or the disk into one that names the picture and the reason."""
    try:
        yield
    except UnidentifiedImageError as error:
        reason = f"it holds no {_TOLD_FORMATS} picture"
        raise UnreadablePictureError(path, name, reason) from error
    except (UserError, UnreachableError):
        raise
    except _BROKEN as error:
        if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
            raise
        told = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UnreadablePictureError(path, name, " ".join(str(told).split())) from error
