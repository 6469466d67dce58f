# SPDX-License-Identifier: Apache-2.0
"""`recoverability.png`: the share of each level that a block shows, and the share it lacks.

Legend: L levels, D blocks, T bins of t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from ahpa_scale.evaluation.recoverability import RecoverabilityMap

#: If the best share is below this, the level is lost in the noise and nothing counts as lacking.
LEAST_BEST = 0.02
#: The colour scale of the lower maps ends here or higher, so that rounding noise stays pale.
LEAST_SCALE = 0.2
_MOST_TICKS = 12


def draw_recoverability(recoverability: RecoverabilityMap, title: str = "") -> Figure:
    """Two heat maps per level, block against noise, the second below the first.

    Above, R^2 with a dot at the best block of each bin. Below, what is lacking: 1 - R^2 / the best
    block's R^2 in that bin, grey where even the best block shows less than 2 %.

    Args:
        recoverability: the map.
        title: one line above the maps.
    """
    r2_LDT = np.asarray(recoverability.r2_LDT)
    columns = len(recoverability.levels)
    width = 1.6 + (2.7 if columns <= 5 else 2.1) * columns
    height = 1.2 + 2 * (1.3 + 0.16 * min(len(recoverability.blocks), 28))
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(2, columns, squeeze=False)
    # One scale for all levels, up to the largest gap: most gaps are small and must show.
    largest = max(float(np.nan_to_num(lacking(r2_DT)).max()) for r2_DT in r2_LDT)
    highest = max(LEAST_SCALE, math.ceil(10 * largest) / 10)
    images: list[AxesImage] = []
    for column, level in enumerate(recoverability.levels):
        above, below = rows[0][column], rows[1][column]
        images = _pair(above, below, recoverability, r2_LDT[column], level, highest)
        _label(above, below, first=column == 0)
    for row, image, label in zip(
        rows, images, ("R² (dot: best block)", "1 - R² / best (grey: lost)"), strict=True
    ):
        figure.colorbar(image, ax=row.tolist(), label=label, pad=0.01)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def lacking(r2_DT: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 - R^2 / best block's R^2 at the same noise; NaN if the best is below 2 %."""
    best_T = r2_DT.max(axis=0)
    lost_T = best_T < LEAST_BEST
    share_DT: NDArray[np.float64] = 1 - r2_DT / np.where(lost_T, 1.0, best_T)
    share_DT[:, lost_T] = np.nan
    return share_DT


def _pair(
    above: Axes,
    below: Axes,
    recoverability: RecoverabilityMap,
    r2_DT: NDArray[np.float64],
    level: str,
    highest: float,
) -> list[AxesImage]:
    depth, bins = r2_DT.shape
    area = (0, 1, 0.5, depth + 0.5)
    images = []
    reds = colormaps["magma_r"].with_extremes(bad="0.8")
    for axes, values_DT, colours, top in (
        (above, r2_DT, "cividis", 1.0),
        (below, lacking(r2_DT), reds, highest),
    ):
        images.append(
            axes.imshow(
                values_DT,
                origin="lower",
                aspect="auto",
                extent=area,
                cmap=colours,
                vmin=0,
                vmax=top,
                interpolation="nearest",
            )
        )
    known_T = r2_DT.max(axis=0) >= LEAST_BEST
    centres_T = (np.arange(bins) + 0.5) / bins
    above.plot(
        centres_T[known_T],
        r2_DT.argmax(axis=0)[known_T] + 1,
        linestyle="none",
        marker="o",
        markersize=4,
        markerfacecolor="white",
        markeredgecolor="black",
    )
    above.set_title(short_level(level), fontsize=10)
    below.set_title(f"lacking: {short_level(level)}", fontsize=10)
    ticks = _ticks(recoverability.blocks)
    for axes in (above, below):
        axes.set_yticks(
            [place + 1 for place in ticks], [str(recoverability.blocks[p]) for p in ticks]
        )
        axes.set(xlim=(0, 1), ylim=(0.5, depth + 0.5), xticks=(0, 0.5, 1))
    return images


def _label(above: Axes, below: Axes, first: bool) -> None:
    above.tick_params(labelbottom=False)
    below.set_xlabel("noise level t")
    for axes in (above, below):
        if first:
            axes.set_ylabel("block")
        else:
            axes.tick_params(labelleft=False)


def _ticks(blocks: Sequence[int]) -> list[int]:
    step = math.ceil(len(blocks) / _MOST_TICKS)
    return list(range(0, len(blocks), step))


def short_level(level: str) -> str:
    """A level's name without the parts that all encoder levels share, as ``down_blocks.0``."""
    return level.removeprefix("encoder.").partition(".resnets.")[0]
