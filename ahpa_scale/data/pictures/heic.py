# SPDX-License-Identifier: Apache-2.0
"""HEIC, the pictures of phones. Pillow does not read it; the extra `heic` does."""

from __future__ import annotations

from functools import cache
from typing import BinaryIO

from PIL import Image, ImageFile

_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def is_heic(file: BinaryIO) -> bool:
    """Whether a file says that it is HEIC or HEIF."""
    file.seek(0)
    head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:] in _BRANDS


def open_heic(file: BinaryIO) -> ImageFile.ImageFile:
    """Open a HEIC picture, like `Image.open`. Its own turns are applied to the pixels.

    Raises:
        ValueError: pillow-heif is not here, or the picture is damaged.
    """
    if not _registered():
        raise ValueError("it is HEIC, which needs a package: pip install 'ahpa-scale[heic]'")
    file.seek(0)
    return Image.open(file, formats=("HEIF",))


@cache
def _registered() -> bool:
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener(thumbnails=False)
    return True
