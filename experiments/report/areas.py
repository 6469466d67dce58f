# SPDX-License-Identifier: Apache-2.0
"""Figures that fill areas: the routers' weights and the recoverability maps.

Legend: G levels, L mapped levels, D blocks, T t-bins; t = 0 is data, t = 1 is noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from experiments.report.figures import NOISE, draw_panels


@dataclass(frozen=True)
class RouterPanel:
    """One run's weights: centres ``[T]`` of the t-bins and ``weight_GT``."""

    title: str
    levels: Sequence[str]
    centre_T: np.ndarray
    weight_GT: np.ndarray


def short_level(level: str) -> str:
    """A level's name without the prefix that all encoder levels share: ``down_blocks.0``."""
    return level.removeprefix("encoder.").partition(".resnets.")[0]


def draw_routers(panels: Sequence[RouterPanel], columns: int) -> bytes:
    """Stacked weights over noise, one panel per run; light is fine, dark is coarse."""
    names = sorted(
        {tuple(panel.levels) for panel in panels}, key=lambda levels: (-len(levels), levels)
    )
    order = list(dict.fromkeys(level for levels in names for level in levels))
    shade = matplotlib.colormaps["cividis"]
    colours = {
        level: shade(0.95 - 0.9 * n / max(1, len(order) - 1)) for n, level in enumerate(order)
    }
    by_title = {panel.title: panel for panel in panels}

    def draw(axes: Axes, title: str) -> None:
        panel = by_title[title]
        fills = [colours[level] for level in panel.levels]
        axes.stackplot(panel.centre_T, panel.weight_GT, colors=fills, edgecolor="white", lw=0.5)
        _area_labels(axes, panel, fills)
        axes.set(title=title, xlim=(panel.centre_T[0], panel.centre_T[-1]), ylim=(0, 1))

    return draw_panels(list(by_title), draw, NOISE, "weight", columns=columns)


def _area_labels(axes: Axes, panel: RouterPanel, fills: Sequence[tuple[float, ...]]) -> None:
    """Each level's name where its area is thickest, if the name fits there."""
    top_GT = np.cumsum(panel.weight_GT, axis=0)
    for number, level in enumerate(panel.levels):
        weight_T = panel.weight_GT[number]
        inner = slice(2, -2) if len(weight_T) > 6 else slice(None)
        # Of equally thick places, take the one nearest to the middle.
        off_T = 1e-3 * np.abs(panel.centre_T - 0.5)
        place = int(np.argmax((weight_T - off_T)[inner])) + (inner.start or 0)
        if weight_T[place] < 0.1:
            continue
        red, green, blue = fills[number][:3]
        dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
        axes.text(
            float(panel.centre_T[place]),
            float(top_GT[number, place] - weight_T[place] / 2),
            short_level(level),
            color="white" if dark else "black",
            fontsize=8,
            ha="center",
            va="center",
        )


def draw_map(levels: Sequence[str], blocks: Sequence[int], r2_LDT: np.ndarray) -> bytes:
    """R^2 over block and noise, one panel per level, on one scale from 0 to 1."""
    bins = r2_LDT.shape[2]
    columns = 2 if len(levels) in (2, 4) else 3
    shown = {level: r2_LDT[n] for n, level in enumerate(levels)}

    def panel(axes: Axes, level: str) -> None:
        r2_DT = np.ma.masked_invalid(shown[level])
        edges = np.linspace(0, 1, bins + 1)
        rows = np.arange(len(blocks) + 1) - 0.5
        axes.set_facecolor("#dddddd")
        axes.pcolormesh(edges, rows, r2_DT, cmap="cividis", vmin=0, vmax=1)
        for row, column in np.ndindex(*r2_DT.shape):
            value = shown[level][row, column]
            if math.isfinite(value):
                axes.text(
                    (column + 0.5) / bins,
                    row,
                    _short_number(value),
                    color="white" if value < 0.5 else "black",
                    fontsize=7,
                    ha="center",
                    va="center",
                )
        axes.set_yticks(range(len(blocks)), [str(block) for block in blocks])
        axes.set(title=short_level(level))

    return draw_panels(
        list(levels), panel, NOISE, "block", columns=columns, size=(4.2, 0.34 * len(blocks) + 1.2)
    )


def _short_number(value: float) -> str:
    text = f"{value:.2f}"
    return "0" if float(text) == 0 else text.replace("0.", ".", 1)
