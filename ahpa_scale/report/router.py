# SPDX-License-Identifier: Apache-2.0
"""Figures of the router: its weights over the noise level t and over training."""

from __future__ import annotations

from collections.abc import Sequence

from ahpa_scale.report.curves import mean_weight
from ahpa_scale.report.metrics import Router
from ahpa_scale.report.plots import (
    MARGIN,
    Drawn,
    colour_of,
    dash_of,
    line_over_t,
    new_figure,
    plain,
    set_axes,
)

_MOST_MAPS = 60


def router_figures(records: Sequence[Router]) -> list[Drawn]:
    """The router's weights over t and over training, and how well each level is aligned.

    Args:
        records: in order of their batches, all of the same levels.
    """
    if not records:
        return []
    last = records[-1]
    weights, losses, course = new_figure(), new_figure(), new_figure()
    for level, name in enumerate(last.levels):
        line_over_t(weights, last.weight_GT[level], name, level)
        line_over_t(losses, last.loss_GT[level], name, level)
        course.add_scatter(
            x=[record.batch for record in records],
            y=[mean_weight(record.weight_GT[level], record.count_T) for record in records],
            mode="lines",
            name=plain(name),
            line={"color": colour_of(level), "dash": dash_of(level), "width": 2},
        )
    for figure in (weights, losses):
        set_axes(figure, "noise level t (0: data)", several=True)
    set_axes(course, "batches", several=True)
    for figure in (weights, course):
        figure.update_yaxes(rangemode="tozero")
    when = f"at batch {last.batch:,}"
    drawn = [
        Drawn(f"Weight of each level over t, {when}", weights, by_batch=False),
        Drawn("Mean weight of each level over training", course, by_batch=False),
        Drawn(f"Alignment loss of each level over t, {when}", losses, by_batch=False),
    ]
    return [*drawn, _maps(records)] if len(records) > 1 else drawn


def _maps(records: Sequence[Router]) -> Drawn:
    """For each level a map of its weight: t upwards, training to the right."""
    from plotly.subplots import make_subplots

    step = -(-len(records) // _MOST_MAPS)
    chosen = records[::-1][::step][::-1]
    levels = chosen[-1].levels
    figure = make_subplots(
        rows=len(levels),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.3 / len(levels),
        subplot_titles=[plain(level) for level in levels],
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
    figure.update_layout(template={}, coloraxis=colours, margin={**MARGIN, "t": 24})
    figure.update_annotations(font_size=12, x=0, xanchor="left")
    figure.update_yaxes(title_text="t", title_standoff=2, range=[0, 1], nticks=3)
    figure.update_xaxes(title_text="batches", row=len(levels), col=1)
    title = "Weight of each level over t and over training"
    return Drawn(title, figure, by_batch=False, height=80 + 140 * len(levels))
