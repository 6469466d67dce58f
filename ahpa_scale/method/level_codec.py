# SPDX-License-Identifier: Apache-2.0
"""The frozen code of a data set's encoder levels: fold onto the token grid, project, quantise.

A fine level holds many positions per token. Averaged, they say almost what the next coarser level
says; folded and projected, they keep what is the level's own. Stored targets and those encoded
while training come from this one definition.

Legend: B batch, C channels, H W map sides, g token grid, p positions per side of a token, K
dimensions of a level, S scores of a level: its dimensions and its context, E context of all
coarser levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ahpa_scale.method.folding import fit_to_grid
from ahpa_scale.precision import float32_region, full_float32

#: Number formats of stored codes, and torch's types for them.
STORED_TYPES = {"int8": torch.int8, "float16": torch.float16, "bfloat16": torch.bfloat16}
#: Largest int8 code; -128 is not used, so that codes are symmetric.
LARGEST_CODE = 127


@dataclass(frozen=True)
class LevelCode:
    """The projection of one level; projected channels have mean 0 and about variance 1.

    Attributes:
        weight_SCpp: float32; a convolution with stride p is fold and projection in one, without a
            folded copy of the map. Its first K rows are the level's dimensions. The others are the
            context from which finer levels are predicted.
        bias_S: float32.
        prediction_EK: float32, what the context of all coarser levels predicts of the first K
            scores; it is subtracted.
        step_K: float32, the value of one int8 step of each channel.
    """

    weight_SCpp: Tensor
    bias_S: Tensor
    prediction_EK: Tensor
    step_K: Tensor

    @property
    def dims(self) -> int:
        """K."""
        return len(self.step_K)

    def to(self, device: torch.device | str) -> LevelCode:
        """The same code on a device."""
        return LevelCode(*(each.to(device) for each in vars(self).values()))


@dataclass(frozen=True)
class LevelCodec:
    """The codes of a data set's levels.

    Attributes:
        grid: tokens per side.
        dtype: number format of stored codes, a key of STORED_TYPES.
        codes: level -> its code, fine to coarse.
    """

    grid: int
    dtype: str
    codes: Mapping[str, LevelCode]

    def to(self, device: torch.device | str) -> LevelCodec:
        """The same codec on a device."""
        return replace(self, codes={name: code.to(device) for name, code in self.codes.items()})

    def needed(self, levels: Sequence[str]) -> tuple[str, ...]:
        """The levels whose maps are read for the values of some levels: those and all coarser."""
        names = list(self.codes)
        finest = min((names.index(level) for level in levels), default=len(names))
        return tuple(names[finest:])

    def scores(self, level: str, map_BCHW: Tensor) -> Tensor:
        """A level's map folded and projected, float32 ``[B, S, g, g]``."""
        code = self.codes[level]
        with full_float32(), float32_region(map_BCHW):
            fitting_BCHW = fit_to_grid(map_BCHW, self.grid)
            stride = code.weight_SCpp.shape[-1]
            return F.conv2d(fitting_BCHW, code.weight_SCpp, code.bias_S, stride)

    def values(self, scores: Mapping[str, Tensor], levels: Sequence[str]) -> dict[str, Tensor]:
        """The reduced levels before rounding, float32 ``[B, K, g, g]``.

        Args:
            scores: scores of the levels that are `needed`.
            levels: the wanted levels.
        """
        names = list(self.codes)
        values: dict[str, Tensor] = {}
        for level in levels:
            code, coarser = self.codes[level], names[names.index(level) + 1 :]
            value_BKgg = scores[level][:, : code.dims]
            if coarser:
                context = [scores[name][:, self.codes[name].dims :] for name in coarser]
                with full_float32(), float32_region(value_BKgg):
                    told_BKgg = torch.einsum(
                        "beij,ek->bkij", torch.cat(context, dim=1), code.prediction_EK
                    )
                value_BKgg = value_BKgg - told_BKgg
            values[level] = value_BKgg
        return values

    def quantise(self, level: str, value_BKgg: Tensor) -> Tensor:
        """Values ``[..., K, g, g]`` in the stored format, of the same shape."""
        if self.dtype != "int8":
            return value_BKgg.to(STORED_TYPES[self.dtype])
        code_BKgg = (value_BKgg / self.codes[level].step_K[:, None, None]).round()
        return code_BKgg.clamp(-LARGEST_CODE, LARGEST_CODE).to(torch.int8)

    def restore(self, level: str, stored_BKgg: Tensor) -> Tensor:
        """Stored values ``[..., K, g, g]`` as targets: float16 for int8 codes, otherwise as they
        are stored.
        """
        if self.dtype != "int8":
            return stored_BKgg
        return (stored_BKgg * self.codes[level].step_K[:, None, None]).half()

    def rounded(self, level: str, value_BKgg: Tensor) -> Tensor:
        """Values as a data set would give them back."""
        return self.restore(level, self.quantise(level, value_BKgg))
