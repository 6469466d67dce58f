# SPDX-License-Identifier: Apache-2.0
"""Fits a data set's codec to its sample, and measures on held-out pictures what it keeps.

Legend: N fitted tokens, M held-out tokens, C channels, P positions of a token, K dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ahpa_scale.data.codec_info import CodedLevel
from ahpa_scale.data.level_sample import LevelSample
from ahpa_scale.method.increments import unexplained_share
from ahpa_scale.method.level_codec import LevelCodec
from ahpa_scale.method.level_fit import fit_levels
from ahpa_scale.models.vae_config import default_groups
from ahpa_scale.precision import full_float32


def level_dims(levels: tuple[str, ...], per_group: int) -> dict[str, int]:
    """Dimensions of each level; the levels of a default group share those of the group."""
    groups = default_groups(levels).values() if levels else ()
    return {level: max(1, per_group // len(group)) for group in groups for level in group}


def fit_codec(
    sample: LevelSample,
    grid: int,
    dims: Mapping[str, int],
    recipe: str,
    dtype: str,
    device: torch.device | str,
) -> LevelCodec:
    """The codec of a data set, on the CPU.

    Args:
        sample: tokens of its pictures.
        grid: tokens per side.
        dims: level -> most dimensions.
        recipe: one of :data:`ahpa_scale.method.level_fit.RECIPES`.
        dtype: number format of stored values.
        device: where it is computed.

    Raises:
        UserError: a level never varies.
    """
    tokens = {name: each[: sample.fitted].to(device) for name, each in sample.levels.items()}
    with full_float32():
        fitted = fit_levels(tokens, dims, recipe)
    codes = {name: level.code for name, level in fitted.items()}
    return LevelCodec(grid, dtype, codes).to("cpu")


def coded_values(
    codec: LevelCodec, sample: LevelSample
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The sample's tokens through the codec: exact and rounded values, level -> ``[N, K]``."""
    tokens = {name: _as_maps(token_NCP) for name, token_NCP in sample.levels.items()}
    single = replace(codec, grid=1)
    scores = {name: single.scores(name, map_NCpp) for name, map_NCpp in tokens.items()}
    exact = single.values(scores, tuple(scores))
    rounded = {name: single.rounded(name, value) for name, value in exact.items()}
    return _flat(exact), _flat(rounded)


def measure_codec(
    codec: LevelCodec, sample: LevelSample, device: torch.device | str
) -> tuple[CodedLevel, ...]:
    """What the codec keeps of each level, on the sample's held-out pictures."""
    return measure_values(sample, *coded_values(codec, sample), device)


def measure_values(
    sample: LevelSample,
    exact: Mapping[str, Tensor],
    rounded: Mapping[str, Tensor],
    device: torch.device | str,
) -> tuple[CodedLevel, ...]:
    """What values keep of each level, on the sample's held-out pictures.

    Args:
        sample: the sample.
        exact: level, fine to coarse -> its values on the sample, ``[N, K]``.
        rounded: the same as a data set would give them back.
        device: where it is computed.
    """
    names = list(sample.levels)
    told = []
    for place, name in enumerate(names):
        own = [rounded[each] for each in names[place:]]
        cosine_N = torch.cosine_similarity(rounded[name], exact[name], dim=1)
        told.append(
            CodedLevel(
                name=name,
                dims=exact[name].shape[1],
                kept=1 - left_share(sample, own, sample.levels[name].flatten(1), device),
                increment=increment(sample, name, rounded[name], device),
                availability=1 - left_share(sample, [sample.latent_NZ], rounded[name], device),
                cosine=float(cosine_N.mean()),
            )
        )
    return tuple(told)


def increment(
    sample: LevelSample, level: str, value_NC: Tensor, device: torch.device | str
) -> float:
    """Share of the variance of a level's values that no coarser level of the sample predicts."""
    names = list(sample.levels)
    coarser = [sample.levels[name].flatten(1) for name in names[names.index(level) + 1 :]]
    return left_share(sample, coarser, value_NC, device) if coarser else 1.0


def left_share(
    sample: LevelSample, x: list[Tensor], y_NC: Tensor, device: torch.device | str
) -> float:
    """Share of y's variance on held-out pictures that x leaves; of the fitted ones, if none are
    held out.
    """
    fitted = sample.fitted
    held = slice(fitted, None) if len(y_NC) > fitted else slice(None)
    x = [part.to(device) for part in x]
    y_NC = y_NC.to(device)
    with full_float32():
        return unexplained_share(
            [part[:fitted] for part in x], y_NC[:fitted], [part[held] for part in x], y_NC[held]
        )


def _flat(maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.float().flatten(1) for name, value in maps.items()}


def _as_maps(token_NCP: Tensor) -> Tensor:
    """Every token as a map of its own."""
    side = round(token_NCP.shape[2] ** 0.5)
    return token_NCP.unflatten(2, (side, side))
