# SPDX-License-Identifier: Apache-2.0
"""Figures of runs, as plotly draws them. Colours of text and grid are the page's: see page.js.

Legend: G levels, T bins of the noise level t, R rows.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ahpa_scale.report.curves import Curve, curve_of, mean_weight, speed_of
from ahpa_scale.report.evaluation import title_of
from ahpa_scale.report.runs import Run

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

#: Okabe and Ito's colours, which stay apart in the common kinds of colour blindness and on a light
#: and a dark page. From the seventh run on they come again with another dash.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES = ("solid", "dash", "dot", "dashdot")
#: Marks tell lines apart without any colour.
_MARKS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "star")
_MOST_MAPS = 60

TOTAL, FLOW, ALIGNMENT = "loss/train/total", "loss/train/flow", "loss/train/alignment"
#: Columns with a figure of their own, in this order, with their titles.
MAIN = {
    TOTAL: "Total loss",
    FLOW: "Flow loss",
    ALIGNMENT: "Alignment loss",
    "grad_norm/backbone": "Gradient norm of the backbone",
    "grad_norm/attachments": "Gradient norm of the alignment heads",
    "lr": "Learning rate",
}


@dataclass(frozen=True)
class Drawn:
    """A figure with its heading.

    Attributes:
        title: untrusted text.
        figure: plotly's.
        by_batch: the horizontal axis counts batches, so it can show images or hours instead.
        height: in CSS pixels.
    """

    title: str
    figure: Figure
    by_batch: bool = True
    height: int = 300


def training_figures(runs: Sequence[Run]) -> list[Drawn]:
    """Losses, gradient norms, learning rate and throughput over the batches."""
    drawn = [_column(runs, name, title) for name, title in MAIN.items()]
    speeds = [(place, _speed(run)) for place, run in enumerate(runs)]
    drawn.insert(-1, _curves(runs, speeds, "Images per second, all ranks", from_zero=True))
    return [each for each in drawn if each is not None]


def other_figures(runs: Sequence[Run]) -> list[Drawn]:
    """Everything else that was logged, by name."""
    names = {name for run in runs if run.metrics for name in run.metrics.columns}
    drawn = [_column(runs, name, name) for name in sorted(names - set(MAIN))]
    return [each for each in drawn if each is not None]


def evaluation_figures(runs: Sequence[Run]) -> list[Drawn]:
    """Each figure of the evaluations over the batches, with intervals where there are any."""
    every = [(place, each) for place, run in enumerate(runs) for each in run.evaluations]
    names = dict.fromkeys(name for _, evaluation in every for name in evaluation.names)
    drawn = []
    for name in names:
        figure = _figure()
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
                name=_text(label),
                meta=place,
                line={"color": _colour(place), "dash": _dash(place), "width": 2},
                error_y=_bars(rows, name),
            )
        _axes(figure, "batches", several=len(figure.data) > 1)
        drawn.append(Drawn(title_of(name), figure))
    return drawn


def noise_figure(runs: Sequence[Run]) -> Drawn | None:
    """Held-out loss over the noise level, of each run's newest evaluated checkpoint."""
    figure = _figure()
    for place, run in enumerate(runs):
        evaluation = run.evaluation
        rows_T = evaluation.rows[-1].flow_T if evaluation else []
        if any(loss is not None for loss in rows_T):
            _line_over_t(figure, rows_T, f"{run.name}", place, _colour(place))
    if not figure.data:
        return None
    _axes(figure, "noise level t (0: data)", several=len(figure.data) > 1)
    return Drawn("Held-out loss over the noise level, newest checkpoint", figure, by_batch=False)


def router_figures(run: Run) -> list[Drawn]:
    """The router's weights over t and over training, and how well each level is aligned."""
    records = run.metrics.routers if run.metrics else []
    if not records:
        return []
    last = records[-1]
    weights, losses, course = _figure(), _figure(), _figure()
    for level, name in enumerate(last.levels):
        colour = _colour(level)
        _line_over_t(weights, last.weight_GT[level], name, level, colour)
        _line_over_t(losses, last.loss_GT[level], name, level, colour)
        course.add_scatter(
            x=[record.batch for record in records],
            y=[mean_weight(record.weight_GT[level], record.count_T) for record in records],
            mode="lines",
            name=_text(name),
            line={"color": colour, "dash": _dash(level), "width": 2},
        )
    for figure in (weights, losses):
        _axes(figure, "noise level t (0: data)", several=True)
    _axes(course, "batches", several=True)
    for figure in (weights, course):
        figure.update_yaxes(rangemode="tozero")
    when = f"at batch {last.batch:,}"
    drawn = [
        Drawn(f"Weight of each level over t, {when}", weights, by_batch=False),
        Drawn("Mean weight of each level over training", course, by_batch=False),
        Drawn(f"Alignment loss of each level over t, {when}", losses, by_batch=False),
    ]
    return [*drawn, _maps(run)] if len(records) > 1 else drawn


def _maps(run: Run) -> Drawn:
    """For each level a map of its weight: t upwards, training to the right."""
    from plotly.subplots import make_subplots

    assert run.metrics is not None
    records = run.metrics.routers
    step = -(-len(records) // _MOST_MAPS)
    chosen = records[::-1][::step][::-1]
    levels = chosen[-1].levels
    figure = make_subplots(
        rows=len(levels),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.3 / len(levels),
        subplot_titles=[_text(level) for level in levels],
    )
    bins = len(chosen[-1].count_T)
    chosen = [record for record in chosen if len(record.count_T) == bins]
    for level in range(len(levels)):
        figure.add_heatmap(
            x=[record.batch for record in chosen],
            y=[(place + 0.5) / bins for place in range(bins)],
            z=[[record.weight_GT[level][place] for record in chosen] for place in range(bins)],
            coloraxis="coloraxis",
            hovertemplate="batch %{x}, t %{y}: %{z:.3f}<extra></extra>",
            row=level + 1,
            col=1,
        )
    colours = {"colorscale": "Cividis", "colorbar": {"thickness": 12}}
    figure.update_layout(template={}, coloraxis=colours, margin={**_MARGIN, "t": 24})
    figure.update_annotations(font_size=12, x=0, xanchor="left")
    figure.update_yaxes(title_text="t", title_standoff=2, range=[0, 1], nticks=3)
    figure.update_xaxes(title_text="batches", row=len(levels), col=1)
    title = "Weight of each level over t and over training"
    return Drawn(title, figure, by_batch=False, height=80 + 140 * len(levels))


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
    figure = _figure()
    known = [(place, curve) for place, curve in curves if curve is not None]
    for place, curve in known:
        _band(figure, place, curve)
    for place, curve in known:
        single = len(curve.batches) == 1
        figure.add_scatter(
            x=curve.batches,
            y=curve.means,
            mode="markers" if single else "lines",
            name=_text(runs[place].name),
            meta=place,
            legendgroup=str(place),
            line={"color": _colour(place), "dash": _dash(place), "width": 1.8},
        )
    if not known:
        return None
    _axes(figure, "batches", several=len(known) > 1)
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
        "line": {"width": 0, "color": _colour(place)},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    if known:
        figure.add_scatter(y=[low for _, low, _ in known], **shared)
        figure.add_scatter(
            y=[high for _, _, high in known],
            fill="tonexty",
            fillcolor=f"{_colour(place)}30",
            **shared,
        )


def _line_over_t(
    figure: Figure, values_T: Sequence[float | None], name: str, place: int, colour: str
) -> None:
    bins = len(values_T)
    figure.add_scatter(
        x=[(number + 0.5) / bins for number in range(bins)],
        y=list(values_T),
        mode="lines+markers",
        name=_text(name),
        marker={"symbol": _MARKS[place % len(_MARKS)], "size": 7},
        line={"color": colour, "dash": _dash(place), "width": 2},
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


_MARGIN = {"l": 56, "r": 12, "t": 8, "b": 44}


def _figure() -> Figure:
    from plotly.graph_objects import Figure

    return Figure(layout={"template": {}, "margin": _MARGIN, "hovermode": "x"})


def _axes(figure: Figure, x_title: str, *, several: bool) -> None:
    legend = {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"}
    figure.update_layout(showlegend=several, legend=legend)
    figure.update_xaxes(title_text=x_title, title_standoff=6)
    figure.update_yaxes(automargin=True)


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def _dash(place: int) -> str:
    return _DASHES[place // len(COLOURS) % len(_DASHES)]


def _text(text: str) -> str:
    """Plotly reads its texts as a kind of HTML."""
    return html.escape(text, quote=False)
