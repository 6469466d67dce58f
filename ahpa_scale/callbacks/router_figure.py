# SPDX-License-Identifier: Apache-2.0
"""`router.png`: which level the router prefers at which noise, and how well each is aligned.

Legend: G levels, T t-bins, S recorded steps.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from composer.core import Callback, Event, State
from composer.loggers import Logger
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ahpa_scale import storage
from ahpa_scale.algorithms.timing import Every
from ahpa_scale.callbacks.common import router_summary, writes_files
from ahpa_scale.log_files import going_on_without
from ahpa_scale.preemption import Requests
from ahpa_scale.run_files import ROUTER_FILE

# Okabe and Ito's colours, which stay apart in the common kinds of colour blindness; the markers
# tell lines apart without any colour.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_MOST_RECORDS = 512


class RouterFigure(Callback):
    """Draws the router's last summary and its course over training, on rank 0.

    Draws nothing while no attachment has a router's summary. The course is part of the state.

    Args:
        output_dir: local folder.
        interval: time string between drawings; the end of training draws as well.
        requests: nothing is drawn once the run is asked to leave.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        interval: str = "1000ba",
        requests: Requests | None = None,
    ) -> None:
        self.requests = requests or Requests()
        self.path = Path(output_dir) / ROUTER_FILE
        self.due = Every(interval)
        self.history: list[tuple[int, list[float]]] = []

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        """Draw when it is time."""
        del logger
        if not (event == Event.FIT_END or self.due(event, state)) or not writes_files():
            return
        if self.requests.leaving or self.requests.leave is not None:
            return
        summary = router_summary(state.model)
        if summary is None:
            return
        self._record(state.timestamp.batch.value, summary)
        with going_on_without(self.path):
            save_figure(draw_router(summary, self.history), self.path)

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = [(int(batch), list(weights)) for batch, weights in state["history"]]

    def _record(self, batch: int, summary: dict[str, Any]) -> None:
        weights = mean_weights(summary)
        # A resumed run drops its later records; a changed number of levels starts a new course.
        past = [
            record
            for record in self.history
            if record[0] < batch and len(record[1]) == len(weights)
        ]
        self.history = [*(past[::2] if len(past) >= _MOST_RECORDS else past), (batch, weights)]


def mean_weights(summary: dict[str, Any]) -> list[float]:
    """Each level's weight averaged over pictures, from the t-bins that saw any."""
    counts_T = np.asarray(summary["count_T"], dtype=float)
    seen_T = counts_T > 0
    weight_GT = np.asarray(summary["weight_GT"], dtype=float)[:, seen_T]
    return [float(mean) for mean in weight_GT @ counts_T[seen_T] / counts_T.sum()]


def draw_router(
    summary: dict[str, Any], history: Sequence[tuple[int, Sequence[float]]] = ()
) -> Figure:
    """Weight and alignment loss of each level over t and, from two records on, weights over time.

    Args:
        summary: ``levels``, ``weight_GT``, ``loss_GT`` (None where unknown) and ``count_T``.
        history: (batch, mean weight of each level), in order of the batches.
    """
    course = len(history) > 1
    figure = Figure(figsize=(14 if course else 9.5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3 if course else 2)
    levels = [_short(level) for level in summary["levels"]]
    _lines(axes[0], summary["weight_GT"], levels)
    axes[0].axhline(1 / len(levels), color="0.5", linestyle="--", linewidth=1, label="uniform")
    axes[0].set(title="Weight of each level", ylabel="mean weight")
    axes[0].set_ylim(0, max(axes[0].get_ylim()[1], 1.25 / len(levels)))
    _lines(axes[1], summary["loss_GT"], levels)
    axes[1].set(title="Alignment loss of each level", ylabel="mean loss (lower: better aligned)")
    if course:
        _heat_map(figure, axes[2], levels, history)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=_legend_columns(labels))
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG whole or not at all."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    storage.write_bytes(path, content.getvalue())


def _short(level: str) -> str:
    """A level's name without the parts that all encoder levels share: ``down_blocks.0``."""
    return level.removeprefix("encoder.").partition(".resnets.")[0]


def _legend_columns(labels: Sequence[str]) -> int:
    """As many as fit beside each other under two panels."""
    return max(1, min(len(labels), 100 // (max(map(len, labels)) + 6)))


def _lines(axes: Axes, values_GT: Sequence[Sequence[float | None]], levels: list[str]) -> None:
    table_GT = np.asarray(values_GT, dtype=float)
    num_bins = table_GT.shape[1]
    centres_T = (np.arange(num_bins) + 0.5) / num_bins
    for number, level in enumerate(levels):
        axes.plot(
            centres_T,
            table_GT[number],
            color=_COLOURS[number % len(_COLOURS)],
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=5,
            label=level,
        )
    axes.set(xlim=(0, 1), xlabel="noise level t   (0 = data, 1 = noise)")
    axes.grid(alpha=0.25)


def _heat_map(
    figure: Figure,
    axes: Axes,
    levels: list[str],
    history: Sequence[tuple[int, Sequence[float]]],
) -> None:
    batches_S = np.array([batch for batch, _ in history], dtype=float)
    weight_GS = np.array([weights for _, weights in history]).T
    mesh = axes.pcolormesh(
        batches_S, np.arange(len(levels)), weight_GS, cmap="cividis", shading="nearest"
    )
    axes.set(title="Mean weight over training", xlabel="batch")
    axes.set_yticks(range(len(levels)), levels)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    figure.colorbar(mesh, ax=axes, label="mean weight")
