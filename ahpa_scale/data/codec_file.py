# SPDX-License-Identifier: Apache-2.0
"""The codec of a data set's levels as a file beside its card: safetensors, with a JSON header."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ahpa_scale import storage, typed_json
from ahpa_scale.data.card import DatasetCard
from ahpa_scale.errors import UserError
from ahpa_scale.method.level_codec import LevelCode, LevelCodec

CODEC_NAME = "level_codec.safetensors"
#: Most bytes of the file. The SD VAE's three groups of 64 dimensions take 9 million.
CODEC_LIMIT = 1 << 30


def codec_bytes(codec: LevelCodec, told: Mapping[str, Any]) -> bytes:
    """The content of the file.

    Args:
        codec: what is stored.
        told: what its header tells beside grid, number format and levels, ready for JSON.
    """
    tensors = {
        f"{level}.{name}": value.cpu().contiguous()
        for level, code in codec.codes.items()
        for name, value in vars(code).items()
    }
    header = {"grid": codec.grid, "dtype": codec.dtype, "levels": list(codec.codes), **told}
    return bytes(save(tensors, {"codec": json.dumps(header, sort_keys=True)}))


def codec_header(content: bytes, where: str) -> dict[str, Any]:
    """What the header of the file's content tells.

    Raises:
        UserError: it has none, or it cannot be read.
    """
    # safetensors: the length of the JSON header in 8 bytes, then the header.
    length = int.from_bytes(content[:8], "little")
    told: Any = typed_json.parse(content[8 : 8 + length], where)
    for name in ("__metadata__", "codec"):
        if not isinstance(told, dict) or name not in told:
            raise UserError(f"{where} is not the codec of a data set")
        told = told[name]
    header = typed_json.parse(str(told), where)
    if not isinstance(header, dict):
        raise UserError(f"{where} is not the codec of a data set")
    return header


def codec_digest(content: bytes) -> str:
    """What a card tells of the file."""
    return hashlib.sha256(content).hexdigest()


def read_codec(url: str | os.PathLike[str], card: DatasetCard) -> LevelCodec | None:
    """The codec of the data set at a local path or any fsspec URL; None if it has pooled levels.

    Raises:
        UserError: the file is missing, or is not the one that the card tells of.
    """
    if card.codec is None:
        return None
    where = storage.join(url, CODEC_NAME)
    try:
        content = storage.read_bytes(where, CODEC_LIMIT)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{where} is missing: copy the data set again as a whole") from None
    if codec_digest(content) != card.codec.digest:
        raise UserError(f"{where} is not the codec that the card tells of: copy the data set again")
    return parse_codec(content, card, where)


def parse_codec(content: bytes, card: DatasetCard, where: str) -> LevelCodec:
    """The codec in the file's content, for the levels and the grid of a card.

    Raises:
        UserError: the file is damaged, or does not fit the card.
    """
    try:
        tensors = dict(load(content))
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where} cannot be read ({reason}): prepare the data again") from None
    codes: dict[str, LevelCode] = {}
    coarser = 0
    for level in reversed(card.levels):
        names = [field.name for field in fields(LevelCode)]
        parts = [tensors.pop(f"{level.name}.{name}", None) for name in names]
        problem = _flaw(parts, level.channels, coarser)
        if problem is not None:
            raise UserError(f"{where} cannot be used: level {level.name!r} {problem}")
        code = LevelCode(*(part for part in parts if part is not None))
        if code.dims != card.prior_channels[level.name]:
            raise UserError(f"{where} cannot be used: level {level.name!r} has other dimensions")
        codes[level.name] = code
        coarser += len(code.bias_S) - code.dims
    if tensors:
        raise UserError(f"{where} cannot be used: {min(tensors)!r:.80} does not belong")
    ordered = {level.name: codes[level.name] for level in card.levels}
    return LevelCodec(card.grid, card.prior_dtype, ordered)


def _flaw(parts: list[Tensor | None], channels: int, coarser: int) -> str | None:
    """What is wrong with the tensors of a level; None if nothing is."""
    if any(part is None for part in parts):
        return "is missing"
    tensors = [part for part in parts if part is not None]
    shapes = [tuple(part.shape) for part in tensors]
    scores, dims, side = tensors[1].numel(), tensors[3].numel(), (*shapes[0], 0)[3:4]
    fitting = [(scores, channels, *side, *side), (scores,), (coarser, dims), (dims,)]
    if not 1 <= dims <= scores or shapes != fitting:
        return "has shapes that do not fit each other or the card"
    if any(part.dtype != torch.float32 or not bool(part.isfinite().all()) for part in tensors):
        return "is not of finite float32 numbers"
    return None if bool((tensors[3] > 0).all()) else "has a step that is not above 0"
