# SPDX-License-Identifier: Apache-2.0
"""ICC profiles: how a picture's colours become sRGB."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

Transform = Callable[[Image.Image], Image.Image]

#: Most bytes of a profile; those of printing presses have about two million.
_MOST_BYTES = 1 << 23
#: Colours that differ by this much are the same: profiles of sRGB itself round in many ways.
_SAME = 2
_SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}


def transform_of(image: Image.Image) -> Transform | None:
    """A function from the picture, in RGB, grey or CMYK of eight bits, to sRGB without alpha.

    None if there is nothing to do: no profile, one of sRGB, or one that is broken or of other
    colours than the picture's.
    """
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or not 0 < len(profile) <= _MOST_BYTES:
        return None
    return _transform(profile, _space(image))


def _space(image: Image.Image) -> str:
    if image.mode == "CMYK":
        return "CMYK"
    grey = image.mode in ("1", "L", "LA") or image.mode.startswith("I")
    return "L" if grey else "RGB"


@lru_cache(maxsize=32)
def _transform(profile: bytes, space: str) -> Transform | None:
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if _SPACES.get(opened.profile.xcolor_space.strip()) != space:
            return None
        srgb = ImageCms.createProfile("sRGB")
        made = ImageCms.buildTransform(opened, srgb, space, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        # A good picture may have a broken profile.
        return None
    if space != "CMYK" and _changes_little(made, space):
        return None

    def apply(image: Image.Image) -> Image.Image:
        found = ImageCms.applyTransform(image.convert(space), made)
        assert found is not None, "not in place"
        return found

    return apply


def _changes_little(made: ImageCms.ImageCmsTransform, space: str) -> bool:
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    if space == "L":
        image = Image.fromarray(steps[None])
    else:
        lattice = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
        image = Image.fromarray(np.ascontiguousarray(lattice))
    found = ImageCms.applyTransform(image, made)
    before = np.asarray(image.convert("RGB")).astype(int)
    return bool(np.abs(np.asarray(found).astype(int) - before).max() <= _SAME)
