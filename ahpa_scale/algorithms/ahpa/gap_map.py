# SPDX-License-Identifier: Apache-2.0
"""Reads the recoverability map that `ahpa-scale diagnose` writes."""

from __future__ import annotations

import os

import torch
from pydantic import BaseModel

from ahpa_scale import storage, typed_json
from ahpa_scale.errors import UserError
from ahpa_scale.method import GapMap

#: Most bytes of a map; 32 levels, 64 blocks and 100 bins take 4 million.
_LIMIT = 64 << 20


class _Told(BaseModel):
    model_config = {**typed_json.STRICT, "extra": "ignore"}

    levels: list[str]
    blocks: list[int]
    bins: int
    r2_LDT: list[list[list[float]]]


def read_gap_map(url: str | os.PathLike[str]) -> GapMap:
    """Read a ``recoverability.json`` at a local path or any fsspec URL.

    Raises:
        UserError: there is no file, or it isn't a complete map of numbers.
    """
    try:
        content = storage.read_bytes(url, _LIMIT)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise UserError(f"there is no file {url}; write one with ahpa-scale diagnose") from None
    told = typed_json.parse_as(_Told, content, f"{url} is not a recoverability map: it", _LIMIT)
    levels, blocks = tuple(told.levels), tuple(told.blocks)
    shape = (len(levels), len(blocks), told.bins)
    # A finite Python float can be infinite in float32.
    if 0 not in shape and _has_shape(told.r2_LDT, shape):
        r2_LDT = torch.tensor(told.r2_LDT, dtype=torch.float32)
        if bool(r2_LDT.isfinite().all()):
            return GapMap(levels, blocks, r2_LDT)
    raise UserError(
        f"{url} is not a recoverability map: r2_LDT must hold {list(shape)} finite numbers"
    )


def _has_shape(nest: list[list[list[float]]], shape: tuple[int, int, int]) -> bool:
    levels, blocks, bins = shape
    rows = [row for level in nest for row in level]
    whole = len(nest) == levels and all(len(level) == blocks for level in nest)
    return whole and all(len(row) == bins for row in rows)
