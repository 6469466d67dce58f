# SPDX-License-Identifier: Apache-2.0
"""Curves of training and of evaluation, those of several runs in one figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ahpa_scale.report.curves import Curve, curve_of, speed_of
from ahpa_scale.report.evaluation import title_of
from ahpa_scale.report.plots import (
    Drawn,
    colour_of,
    dash_of,
    line_over_t,
    new_figure,
    plain,
    set_axes,
)
from ahpa_scale.report.runs import Run

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

TOTAL, FLOW, ALIGNMENT = "loss/train/total", "loss/train/flow", "loss/train/alignment"
#: Columns with a figure of their own, in this order, with their titles.
MAIN = {
    TOTAL: "Total loss",
    FLOW: "Flow loss",
    ALIGNMENT: "Alignment loss",
    "heldout/flow": "Held-out loss, while training",
    "grad_norm/backbone": "Gradient norm of the backbone",
    "grad_norm/attachments": "Gradient norm of the alignment heads",
    "lr": "Learning rate",
}
#: Begins the names of distances that a run measures of its samples.
_OF_SAMPLES = "samples/"


def training_figures(runs: Sequence[Run]) -> list[Drawn]:
    """Losses, gradient norms, learning rate and throughput over the batches."""
    drawn = [_column(runs, name, title) for name, title in _titles(runs).items()]
    speeds = [(place, _speed(run)) for place, run in enumerate(runs)]
    drawn.insert(-1, _curves(runs, speeds, "Images per second, all ranks", from_zero=True))
    return [each for each in drawn if each is not None]


def other_figures(runs: Sequence[Run]) -> list[Drawn]:
    """Everything else that was logged, by name."""
    names = _columns(runs) - set(_titles(runs))
    drawn = [_column(runs, name, name) for name in sorted(names)]
    return [each for each in drawn if each is not None]


def _columns(runs: Sequence[Run]) -> set[str]:
    return {name for run in runs if run.metrics for name in run.metrics.columns}


def _titles(runs: Sequence[Run]) -> dict[str, str]:
    """`MAIN`, and the distances of samples from real pictures."""
    distances = sorted(name for name in _columns(runs) if name.startswith(_OF_SAMPLES))
    named = {n: f"{title_of(n.removeprefix(_OF_SAMPLES))}, while training" for n in distances}
    return {**named, **MAIN}


def evaluation_figures(runs: Sequence[Run]) -> list[Drawn]:
    """Each figure of the evaluations over the batches, with intervals where there are any."""
    every = [(place, each) for place, run in enumerate(runs) for each in run.evaluations]
    names = dict.fromkeys(name for _, evaluation in every for name in evaluation.names)
    drawn = []
    for name in names:
        figure = new_figure()
        for place, evaluation in every:
            rows = [row for row in evaluation.rows if name in row.figures]
            if not rows:
                continue
            several = len(runs[place].evaluations) > 1
            label = f"{runs[place].name}: {evaluation.where}" if several else runs[place].name
            figure.add_scatter(
                x=[row.batch for row in rows],
                y=[row.figures[name] for row in rows],
                mode="lines+markers",
                name=plain(label),
                meta=place,
                line={"color": colour_of(place), "dash": dash_of(place), "width": 2},
                error_y=_bars(rows, name),
            )
        set_axes(figure, "batches", several=len(figure.data) > 1)
        drawn.append(Drawn(title_of(name), figure))
    return drawn


def noise_figure(runs: Sequence[Run]) -> Drawn | None:
    """Held-out loss over the noise level, of each run's newest evaluated checkpoint."""
    figure = new_figure()
    for place, run in enumerate(runs):
        evaluation = run.evaluation
        rows_T = evaluation.rows[-1].flow_T if evaluation else []
        if any(loss is not None for loss in rows_T):
            line_over_t(figure, rows_T, run.name, place)
    if not figure.data:
        return None
    set_axes(figure, "noise level t (0: data)", several=len(figure.data) > 1)
    return Drawn("Held-out loss over the noise level, newest checkpoint", figure, by_batch=False)


def _column(runs: Sequence[Run], name: str, title: str) -> Drawn | None:
    curves = []
    for place, run in enumerate(runs):
        column = run.metrics.columns.get(name) if run.metrics else None
        curves.append((place, None if column is None else curve_of(column)))
    return _curves(runs, curves, title)


def _speed(run: Run) -> Curve | None:
    return speed_of(run.metrics) if run.metrics else None


def _curves(
    runs: Sequence[Run],
    curves: Sequence[tuple[int, Curve | None]],
    title: str,
    from_zero: bool = False,
) -> Drawn | None:
    figure = new_figure()
    known = [(place, curve) for place, curve in curves if curve is not None]
    for place, curve in known:
        _band(figure, place, curve)
    for place, curve in known:
        single = len(curve.batches) == 1
        figure.add_scatter(
            x=curve.batches,
            y=curve.means,
            mode="markers" if single else "lines",
            name=plain(runs[place].name),
            meta=place,
            legendgroup=str(place),
            line={"color": colour_of(place), "dash": dash_of(place), "width": 1.8},
        )
    if not known:
        return None
    set_axes(figure, "batches", several=len(known) > 1)
    if from_zero:
        figure.update_yaxes(rangemode="tozero")
    return Drawn(title, figure)


def _band(figure: Figure, place: int, curve: Curve) -> None:
    """The range around a curve of means."""
    pairs = zip(curve.batches, curve.lows, curve.highs, strict=True) if curve.lows else ()
    known = [(batch, low, high) for batch, low, high in pairs if low is not None]
    shared: dict[str, Any] = {
        "x": [batch for batch, _, _ in known],
        "mode": "lines",
        "meta": place,
        "legendgroup": str(place),
        "line": {"width": 0, "color": colour_of(place)},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    if known:
        figure.add_scatter(y=[low for _, low, _ in known], **shared)
        figure.add_scatter(
            y=[high for _, _, high in known],
            fill="tonexty",
            fillcolor=f"{colour_of(place)}30",
            **shared,
        )


def _bars(rows: Sequence[Any], name: str) -> dict[str, Any]:
    """Error bars of the rows' intervals; a row without one has none."""
    ends = [row.intervals.get(name) for row in rows]
    if not any(ends):
        return {"visible": False}
    above, below = [], []
    for row, interval in zip(rows, ends, strict=True):
        value = row.figures[name]
        known = interval is not None and value is not None
        above.append(max(0.0, interval[1] - value) if known else 0.0)
        below.append(max(0.0, value - interval[0]) if known else 0.0)
    return {
        "type": "data",
        "symmetric": False,
        "array": above,
        "arrayminus": below,
        "visible": True,
        "thickness": 1.2,
        "width": 3,
    }
