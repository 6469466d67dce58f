# SPDX-License-Identifier: Apache-2.0
"""Converts between tensors and the columns of MDS shards.

NumPy has no bfloat16, so its 16 bits are stored in a uint16 column.
Shapes: B batch, C channels, H W latent sides, g token grid, S picture side.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ahpa_scale.data.card import DatasetCard
from ahpa_scale.errors import UserError
from ahpa_scale.level_names import EXTERNAL, PRIOR_PREFIX
from ahpa_scale.method.level_codec import LevelCodec

STORED_AS = {"int8": "int8", "float16": "float16", "bfloat16": "uint16"}


def prior_dtype(card: DatasetCard, level: str) -> str:
    """Number format of a level's column. Features that came with the pictures pass no codec."""
    coded = level != EXTERNAL or card.prior_dtype != "int8"
    return card.prior_dtype if coded else "float16"


def columns(card: DatasetCard) -> dict[str, str]:
    """MDS encodings of the columns of a data set.

    Array columns have a fixed shape, so that a reader can find one without decoding the others.
    """
    encodings = {"label": "int"}
    if card.kind == "images":
        encodings["image"] = "png"
    else:
        channels, height, width = card.latent_shape
        encodings["moments"] = f"ndarray:float16:{2 * channels},{height},{width}"
    for level in card.prior_columns:
        shape = f"{card.prior_channels[level]},{card.grid},{card.grid}"
        stored = STORED_AS[prior_dtype(card, level)]
        encodings[PRIOR_PREFIX + level] = f"ndarray:{stored}:{shape}"
    return encodings


def encode_moments(mean_BCHW: Tensor, std_BCHW: Tensor) -> NDArray[Any]:
    """Posterior mean and standard deviation as float16 [B, 2C, H, W].

    Raises:
        UserError: a value that float16 cannot hold.
    """
    moments = torch.cat([mean_BCHW, std_BCHW], dim=1)
    return _to_float16(moments, "latent moments", "check the pictures and the VAE").numpy()


def encode_prior(map_BCgg: Tensor, name: str, dtype: str) -> NDArray[Any]:
    """One level's maps as float16, or as the bits of bfloat16 in uint16.

    Raises:
        UserError: a value is not finite, or too large for float16.
    """
    if dtype == "float16":
        return _to_float16(map_BCgg, f"level {name}", "use prior_dtype bfloat16").numpy()
    _check_finite(map_BCgg, f"level {name}")
    bits = map_BCgg.to("cpu", torch.bfloat16).contiguous().view(torch.uint16)
    return bits.numpy()


def encode_values(value_BKgg: Tensor, level: str, codec: LevelCodec) -> NDArray[Any]:
    """One level's values through a codec, as its column stores them.

    Raises:
        UserError: a value is not finite.
    """
    _check_finite(value_BKgg, f"level {level}")
    if codec.dtype != "int8":
        return encode_prior(value_BKgg, level, codec.dtype)
    return codec.quantise(level, value_BKgg).cpu().contiguous().numpy()


def decode(column: str, value: Any, card: DatasetCard, codec: LevelCodec | None = None) -> Tensor:
    """One stored value as a writable tensor: uint8 picture [3, S, S] or array [C, H, W].

    `codec` is needed for levels of int8.

    Raises:
        UserError: a stored picture is no PNG.
    """
    if isinstance(value, Image.Image):
        # streaming opens pictures of any format, and some formats' decoders run programs. Nothing
        # is decoded before `convert`.
        if value.format != "PNG":
            raise UserError(f"column {column} holds a picture in {value.format}, and not in PNG")
        return torch.from_numpy(np.array(value.convert("RGB"))).permute(2, 0, 1).contiguous()
    # Columns of picture data sets are read-only arrays, but torch needs writable memory.
    array = torch.from_numpy(value if value.flags.writeable else np.array(value))
    if not column.startswith(PRIOR_PREFIX):
        return array
    level = column.removeprefix(PRIOR_PREFIX)
    dtype = prior_dtype(card, level)
    if dtype == "bfloat16":
        return array.view(torch.bfloat16)
    if dtype == "int8":
        assert codec is not None
        return codec.restore(level, array)
    return array


def flaw(column: str, value: Any, card: DatasetCard) -> str | None:
    """What is wrong with a stored value, before it is decoded; None if nothing is.

    Only a picture's header is read, so a picture that claims a huge size is never unpacked.
    """
    if column == "label":
        known = card.num_classes
        return (
            None if 0 <= value < known else f"its label is {value}, and there are {known} classes"
        )
    if isinstance(value, Image.Image):
        sides = (card.image_size, card.image_size)
        size = "x".join(map(str, value.size))
        sound = value.format == "PNG" and value.size == sides
        return None if sound else f"its picture is {value.format} of {size}"
    prior = column.startswith(PRIOR_PREFIX)
    dtype = prior_dtype(card, column.removeprefix(PRIOR_PREFIX)) if prior else "float16"
    if dtype == "int8":
        return None
    half = dtype == "float16"
    # An exponent of all ones means infinity or NaN.
    exponent = np.uint16(0x7C00 if half else 0x7F80)
    if bool(((value.view(np.uint16) & exponent) == exponent).any()):
        return f"its {column} holds values that are not finite"
    return None


def wanted_columns(card: DatasetCard, levels: tuple[str, ...] | None) -> tuple[str, ...]:
    """Columns that a reader of these levels needs, sorted; None means all stored columns.

    Raises:
        UserError: a level that the data set does not hold.
    """
    stored = columns(card)
    priors = [name for name in stored if name.startswith(PRIOR_PREFIX)]
    if levels is None:
        return tuple(sorted(stored))
    for name in levels:
        if PRIOR_PREFIX + name not in priors:
            held = ", ".join(column.removeprefix(PRIOR_PREFIX) for column in priors) or "no levels"
            raise UserError(f"the data set does not hold level {name!r}; it holds {held}")
    wanted = {PRIOR_PREFIX + name for name in levels}
    return tuple(sorted(c for c in stored if c not in priors or c in wanted))


def _to_float16(values: Tensor, what: str, advice: str) -> Tensor:
    _check_finite(values, what)
    half = values.to(torch.float16)
    if not bool(torch.isfinite(half).all()):
        largest = float(values.abs().max())
        raise UserError(f"{what} reaches {largest:.4g}, float16 ends at 65504: {advice}")
    return half.cpu().contiguous()


def _check_finite(values: Tensor, what: str) -> None:
    if not bool(torch.isfinite(values).all()):
        raise UserError(f"{what} holds values that are not finite: check the VAE's weights")
