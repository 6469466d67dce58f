# SPDX-License-Identifier: Apache-2.0
"""Recoverability maps: what a linear readout of the model's own state can recover.

Legend: S seeds, L levels, D blocks, T t-bins.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from ahpa_scale.config.errors import ConfigError
from experiments.analysis import Group
from experiments.analysis_rows import RecoverabilityMap
from experiments.report.areas import draw_map, short_level
from experiments.report.document import Block, Heading, Image, Paragraph, Table, slug
from experiments.report.words import code, listed, plural

FLOOR = 0.02


def map_sections(group: Group) -> list[Block]:
    """A heat map and a table for each mapped variant and step, averaged over its seeds."""
    by_run: dict[tuple[str, int], list[RecoverabilityMap]] = {}
    for recoverability in group.maps:
        by_run.setdefault((recoverability.variant, recoverability.step), []).append(recoverability)
    if not by_run:
        return []
    blocks: list[Block] = [Heading(3, "Recoverability maps")]
    for (variant, step), maps in sorted(by_run.items()):
        blocks += _section(group, variant, step, maps)
    text = (
        "The gap is clip(1 - R^2 / R^2*, 0, 1), with R^2* the best readout anywhere in the same "
        f"map, at least {FLOOR}: near 1 the model lacks the level, near 0 it has it already; a "
        "level that nothing recovers is noise rather than a lack. A map measures what could be "
        "taught; whether teaching it helps is for the tables above."
    )
    return [*blocks, Paragraph(text)]


def _section(
    group: Group, variant: str, step: int, maps: Sequence[RecoverabilityMap]
) -> list[Block]:
    first = maps[0]
    for other in maps[1:]:
        if (other.levels, other.blocks) != (first.levels, first.blocks):
            problem = f"levels and blocks contradict those of {first.where}: one map a variant"
            raise ConfigError(other.where, f"{group.title}, {variant}", problem)
        if np.shape(other.r2_LDT) != np.shape(first.r2_LDT):
            raise ConfigError(other.where, f"{group.title}, {variant}", f"bins: see {first.where}")
    with warnings.catch_warnings():
        # A bin that no seed has seen keeps NaN, without a warning.
        warnings.simplefilter("ignore", RuntimeWarning)
        r2_LDT = np.nanmean(
            np.array([recoverability.r2_LDT for recoverability in maps], dtype=np.float64), axis=0
        )
    seeds = listed(recoverability.seed for recoverability in maps)
    name = slug(f"map {group.study} {group.dataset} {variant} {step}")
    caption = (
        f"{group.title}: R^2 of a linear readout of each level from each block of {code(variant)} "
        f"at step {step}, mean of {plural(len(maps), 'seed')} ({seeds})."
    )
    return [
        Heading(4, f"{code(variant)} at step {step}"),
        Image(name, draw_map(first.levels, first.blocks, r2_LDT), caption),
        _table(first, r2_LDT),
    ]


def _table(recoverability: RecoverabilityMap, r2_LDT: np.ndarray) -> Table:
    known = r2_LDT[np.isfinite(r2_LDT)]
    best = max(FLOOR, float(known.max())) if known.size else FLOOR
    rows: list[tuple[str, ...]] = []
    for level, r2_DT in zip(recoverability.levels, r2_LDT, strict=True):
        if not np.isfinite(r2_DT).any():
            rows.append((short_level(level), *("-",) * 5))
            continue
        row, _ = np.unravel_index(np.nanargmax(r2_DT), r2_DT.shape)
        gap_DT = np.clip(1 - r2_DT / best, 0, 1)
        thirds = np.array_split(gap_DT, 3, axis=1)
        cells = [_smallest(third_DT) for third_DT in thirds]
        top = f"{np.nanmax(r2_DT):.3f}"
        rows.append((short_level(level), top, str(recoverability.blocks[row]), *cells))
    gap = "gap of the best block, {} noise"
    header = ("level", "best R^2", "at block", *(gap.format(n) for n in ("low", "middle", "high")))
    return Table(header, tuple(rows))


def _smallest(gap_DT: np.ndarray) -> str:
    """The smallest mean gap of a block over these t-bins; a dash if nothing was seen."""
    means = [row_T[np.isfinite(row_T)].mean() for row_T in gap_DT if np.isfinite(row_T).any()]
    return f"{min(means):.2f}" if means else "-"
