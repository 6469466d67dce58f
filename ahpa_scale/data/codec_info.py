# SPDX-License-Identifier: Apache-2.0
"""What a card tells of the codec of its levels. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from ahpa_scale import typed_json

#: Beside the token mean, a level keeps what coarser levels leave of it, or its detail; or it is
#: mean-pooled as a whole.
RESIDUAL, DETAIL, POOLED = "residual", "detail", "pooled"
CODECS = (RESIDUAL, DETAIL, POOLED)

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$", max_length=200)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Number = Annotated[int, Field(ge=1, le=1 << 14)]


@dataclass(frozen=True)
class CodedLevel:
    """One level after reduction and rounding, measured on held-out pictures of the sample.

    Attributes:
        name: the level.
        dims: dimensions of a token.
        kept: share of the folded level's variance that is linear in the level's values and those of
            all coarser levels.
        increment: share of the values' variance that no coarser level predicts linearly; the whole
            folded levels are read, not their values. 1 for the coarsest level.
        availability: share of the values' variance that is linear in the clean latent patch.
        cosine: mean cosine of rounded to exact values.
    """

    __pydantic_config__ = typed_json.STRICT

    name: _Name
    dims: _Number
    kept: _Share
    increment: _Share
    availability: _Share
    cosine: Annotated[float, Field(ge=-1, le=1.0001)]


@dataclass(frozen=True)
class CodecInfo:
    """The codec of a data set.

    Attributes:
        recipe: 'residual' or 'detail'.
        digest: sha256 of its file.
        pictures: size of the sample that it was fitted to.
        levels: its levels, fine to coarse.
    """

    __pydantic_config__ = typed_json.STRICT

    recipe: Annotated[str, Field(pattern=f"^({RESIDUAL}|{DETAIL})$")]
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    pictures: Annotated[int, Field(ge=1, le=10**6)]
    levels: Annotated[tuple[CodedLevel, ...], Field(min_length=1, max_length=64)]
