# SPDX-License-Identifier: Apache-2.0
"""Names and geometry of the diffusion transformers; no torch, so that configuration stays fast.

A name is ``<size>/<patch>``, for example ``XL/2``. The sizes S, B, L and XL are those of DiT
(Peebles and Xie 2023, arXiv 2212.09748, table 1) and of SiT; ``tiny`` is ours, for tests and demos.
"""

from __future__ import annotations

import difflib
import math
from typing import NamedTuple

from ahpa_scale.errors import UserError


class DiTSize(NamedTuple):
    """Blocks, channels per token and attention heads of one size."""

    depth: int
    width: int
    heads: int


class DiTGeometry(NamedTuple):
    """Everything about a transformer's shape that can be checked before it is built."""

    depth: int
    width: int
    heads: int
    patch_size: int
    input_size: int
    grid: int


#: Most tokens per side.
LARGEST_GRID = 4096
DIT_SIZES: dict[str, DiTSize] = {
    "tiny": DiTSize(6, 192, 3),
    "S": DiTSize(12, 384, 6),
    "B": DiTSize(12, 768, 12),
    "L": DiTSize(24, 1024, 16),
    "XL": DiTSize(28, 1152, 16),
}


def resolve_geometry(
    name: str,
    *,
    input_size: int | None,
    depth: int | None = None,
    width: int | None = None,
    heads: int | None = None,
) -> DiTGeometry:
    """Turn a model name and the side of its input into a checked geometry.

    Args:
        name: ``<size>/<patch>`` with a size of ``DIT_SIZES`` and any positive patch size.
        input_size: side of the square input (latent cells or pixels); None: not known yet, and
            counts as the largest that there is.
        depth: number of blocks, when it should differ from the size's.
        width: channels per token, when they should differ from the size's.
        heads: attention heads, when they should differ from the size's.

    Returns:
        The geometry; ``grid`` is the number of tokens per side.

    Raises:
        UserError: an unknown name, or numbers that do not fit together.
    """
    size_name, patch_size = _split_name(name)
    size = DIT_SIZES[size_name]
    depth = size.depth if depth is None else depth
    width = size.width if width is None else width
    heads = size.heads if heads is None else heads
    for label, value in (("depth", depth), ("width", width), ("heads", heads)):
        if value < 1:
            raise UserError(f"model {name!r}: {label} must be at least 1, got {value}")
    unit = math.lcm(heads, 4)
    if width % unit:
        near = max(1, round(width / unit)) * unit
        why = f"heads {heads}" if width % heads else "4, which the position embedding needs"
        raise UserError(
            f"model {name!r}: width {width} is not a multiple of {why}; the nearest is {near}"
        )
    if input_size is None:
        input_size = patch_size * LARGEST_GRID
    if input_size < patch_size or input_size % patch_size:
        nearest = max(1, round(input_size / patch_size)) * patch_size
        raise UserError(
            f"model {name!r}: input size {input_size} is not a multiple of patch size"
            f" {patch_size}; the nearest is {nearest}"
        )
    return DiTGeometry(depth, width, heads, patch_size, input_size, input_size // patch_size)


def _split_name(name: str) -> tuple[str, int]:
    size_name, slash, patch = name.partition("/")
    valid_patch = patch.isascii() and patch.isdigit() and int(patch) > 0
    if size_name in DIT_SIZES and slash and valid_patch:
        return size_name, int(patch)
    # Official names carry a family prefix ("SiT-XL/2"), users type them in any case.
    bare = size_name.rsplit("-", maxsplit=1)[-1].lower() or "s"
    by_lower = {size.lower(): size for size in DIT_SIZES}
    nearest = by_lower[difflib.get_close_matches(bare, by_lower, n=1, cutoff=0.0)[0]]
    suggestion = f"{nearest}/{int(patch) if valid_patch else 2}"
    raise UserError(
        f"unknown model {name!r}: did you mean {suggestion!r}? A name is <size>/<patch>,"
        f" sizes: {', '.join(DIT_SIZES)}"
    )
