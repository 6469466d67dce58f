# SPDX-License-Identifier: Apache-2.0
"""Encodes pictures to moments and to levels, pooled or through a data set's codec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from ahpa_scale.models.vae import Encoded, FrozenVAE

if TYPE_CHECKING:
    # A build without alignment has no such module.
    from ahpa_scale.method.level_codec import LevelCodec


def encode_levels(
    vae: FrozenVAE,
    image_BCHW: Tensor,
    levels: Sequence[str],
    grid: int,
    codec: LevelCodec | None,
) -> Encoded:
    """Posterior moments, and levels before rounding.

    Args:
        vae: the frozen autoencoder.
        image_BCHW: as for :meth:`FrozenVAE.encode`.
        levels: wanted levels.
        grid: tokens per side.
        codec: reduces them, on the pictures' device; None averages over the cells of the grid.

    Returns:
        Float32 moments (unscaled) and one float32 map per level, [B, K, grid, grid].
    """
    if codec is None or not levels:
        return vae.encode(image_BCHW, levels, grid)
    encoded = vae.encode(image_BCHW, codec.needed(levels), reduce=codec.scores)
    return replace(encoded, priors=codec.values(encoded.priors, levels))


def encode_targets(
    vae: FrozenVAE,
    image_BCHW: Tensor,
    levels: Sequence[str],
    grid: int,
    codec: LevelCodec | None,
) -> Encoded:
    """As `encode_levels`, but levels are rounded as a data set's; pooled ones are not."""
    encoded = encode_levels(vae, image_BCHW, levels, grid, codec)
    if codec is None:
        return encoded
    rounded = {level: codec.rounded(level, value) for level, value in encoded.priors.items()}
    return replace(encoded, priors=rounded)
