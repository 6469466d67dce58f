# SPDX-License-Identifier: Apache-2.0
"""Bytes, cosine and increments of several codecs on a sample, before a data set is encoded.

Legend: N sampled tokens, C channels, P positions of a token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ahpa_scale.data.codec import STORED_AS
from ahpa_scale.data.codec_fit import (
    coded_values,
    fit_codec,
    level_dims,
    measure_values,
)
from ahpa_scale.data.codec_info import DETAIL, POOLED, RESIDUAL, CodedLevel
from ahpa_scale.data.level_sample import LevelSample, take_sample
from ahpa_scale.data.planning import check_device, plan_set
from ahpa_scale.data.settings import LEVEL_DIMS, PrepareSettings
from ahpa_scale.errors import UserError
from ahpa_scale.models.vae import FrozenVAE


@dataclass(frozen=True)
class ReportRow:
    """One codec on the sample.

    Attributes:
        codec: its recipe, or 'pooled'.
        per_group: dimensions per group of levels; None for pooled levels.
        dtype: number format.
        stored: bytes of all levels of a picture.
        levels: what is kept of each level, fine to coarse.
    """

    codec: str
    per_group: int | None
    dtype: str
    stored: int
    levels: tuple[CodedLevel, ...]


def codec_report(settings: PrepareSettings) -> Iterator[ReportRow]:
    """Tries codecs on the sample that a preparation of these settings would use. Writes nothing.

    Raises:
        UserError: options, pictures or VAE do not fit, or there are no levels.
    """
    check_device(settings.device)
    vae = FrozenVAE.from_pretrained(settings.vae_path)
    card, pictures = plan_set(settings, vae, None)
    if not card.levels:
        raise UserError("the VAE has no levels to report on")
    sample = take_sample(settings, card, vae.to(settings.device), pictures)
    yield from sample_report(sample, card.grid, settings.level_dims, settings.device)


def sample_report(
    sample: LevelSample, grid: int, per_group: int | None, device: torch.device | str
) -> Iterator[ReportRow]:
    """Tries codecs on a sample.

    Args:
        sample: tokens of the pictures.
        grid: tokens per side.
        per_group: dimensions per group of levels; None for the default.
        device: where it is computed.
    """
    pooled = {name: token_NCP.mean(dim=2) for name, token_NCP in sample.levels.items()}
    halves = {name: value_NC.half().float() for name, value_NC in pooled.items()}
    levels = measure_values(sample, pooled, halves, device)
    yield ReportRow(POOLED, None, "float16", _stored(levels, grid, "float16"), levels)
    chosen = per_group or LEVEL_DIMS
    for recipe, dims, dtype in (
        (DETAIL, chosen, "int8"),
        (RESIDUAL, max(1, chosen // 2), "int8"),
        (RESIDUAL, chosen, "int8"),
        (RESIDUAL, chosen, "bfloat16"),
        (RESIDUAL, 2 * chosen, "int8"),
    ):
        of_level = level_dims(tuple(sample.levels), dims)
        codec = fit_codec(sample, grid, of_level, recipe, dtype, device)
        levels = measure_values(sample, *coded_values(codec, sample), device)
        yield ReportRow(recipe, dims, dtype, _stored(levels, grid, dtype), levels)


def _stored(levels: tuple[CodedLevel, ...], grid: int, dtype: str) -> int:
    return sum(level.dims for level in levels) * grid**2 * np.dtype(STORED_AS[dtype]).itemsize


def report_lines(rows: Iterator[ReportRow], sample: int) -> Iterator[str]:
    """The report as a table of text, line by line.

    Args:
        rows: the report.
        sample: most pictures that were looked at.
    """
    for number, row in enumerate(rows):
        if not number:
            yield f"up to {sample} sampled pictures, a quarter of them held out; fine to coarse:"
            yield from (f"  {place}  {level.name}" for place, level in enumerate(row.levels, 1))
            columns = "".join(f"{title:<{_WIDTH * len(row.levels) + 2}}" for title in _TITLES)
            yield f"{'codec':<10}{'dims':>5}  {'format':<10}{'KiB':>7}  {'cosine':<8}{columns}"
        numbers = "".join(
            "".join(f"{getattr(level, name):<{_WIDTH}.3f}" for level in row.levels) + "  "
            for name in _TITLES
        )
        dims = "all" if row.per_group is None else str(row.per_group)
        cosine = min(level.cosine for level in row.levels)
        yield (
            f"{row.codec:<10}{dims:>5}  {row.dtype:<10}{row.stored / 1024:>7.1f}  "
            f"{cosine:<8.4f}{numbers}"
        ).rstrip()


_TITLES = ("kept", "increment", "availability")
_WIDTH = 6
