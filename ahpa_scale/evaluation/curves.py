# SPDX-License-Identifier: Apache-2.0
"""`evaluation.png`: held-out loss per t-bin, and the Frechet distance, over the pictures seen.

Legend: R rows (checkpoints), T bins of t.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from ahpa_scale.evaluation.measures import title_of


def draw_evaluation(rows: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """A panel of losses and, where any row has a Frechet distance, one of distances.

    Args:
        rows: oldest first, at least one, with ``num_images``, ``flow``, ``flow_t`` and maybe
            ``fid`` or ``frechet_...``; None stands for a number that was not finite.
        title: one line above the panels.
    """
    judged = _distance(rows)
    figure = Figure(figsize=(12 if judged else 7, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2 if judged else 1, squeeze=False)[0]
    images_R = [row["num_images"] for row in rows]
    _losses(figure, panels[0], images_R, rows)
    if judged:
        _line(panels[1], images_R, [row.get(judged) for row in rows], color="black")
        panels[1].set(title="Frechet distance", ylim=(0, None))
        panels[1].set_ylabel(title_of(judged))
    for axes in panels:
        axes.set_xlabel("pictures seen")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.3)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _distance(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The first Frechet distance that any row has; FID, if it is among them."""
    names = [name for row in rows for name, value in row.items() if value is not None]
    frechet = [name for name in names if name.startswith("frechet_")]
    return "fid" if "fid" in names else next(iter(frechet), None)


def _losses(
    figure: Figure, axes: Axes, images_R: list[int], rows: Sequence[Mapping[str, Any]]
) -> None:
    bins = len(rows[0]["flow_t"])
    colours = colormaps["viridis"].resampled(bins)
    for place in range(bins):
        _line(axes, images_R, [row["flow_t"][place] for row in rows], color=colours(place))
    mean_R = [row["flow"] for row in rows]
    _line(axes, images_R, mean_R, color="black", linewidth=2.5, label="mean over t")
    axes.set(title="held-out flow loss", ylabel="velocity loss")
    axes.legend(loc="upper right")
    edges_T = np.linspace(0, 1, bins + 1)
    shown = ScalarMappable(BoundaryNorm(edges_T, bins), colours)
    figure.colorbar(shown, ax=axes, label="noise level t (0: data)", ticks=(0, 0.5, 1))


def _line(axes: Axes, x_R: Sequence[int], y_R: Sequence[float | None], **looks: Any) -> None:
    y = np.array([np.nan if value is None else value for value in y_R], dtype=np.float64)
    axes.plot(x_R, y, marker="o", markersize=4, **looks)
