# SPDX-License-Identifier: Apache-2.0
"""The page: what a tired reader wants first, then curves, pictures, evaluation and settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from typing import Any
from xml.etree.ElementTree import Element

import ahpa_scale
from ahpa_scale.report import figures, sections
from ahpa_scale.report.curves import POINTS, clocks_of
from ahpa_scale.report.elements import Content, data, document, node
from ahpa_scale.report.plots import Drawn
from ahpa_scale.report.router import router_figures
from ahpa_scale.report.runs import Run
from ahpa_scale.report.words import moment

_MOST_OTHERS = 60
_AXES = {"batches": "batches", "images": "images seen", "hours": "hours of training"}


def page_of(runs: Sequence[Run], now: float) -> str:
    """The report of runs as one HTML text.

    Args:
        runs: at least one; the first is what the others are compared with.
        now: seconds since 1970.
    """
    from plotly.offline import get_plotlyjs

    plots = _Plots()
    parts = {
        "Runs": sections.cards(runs, now),
        "Comparison": sections.comparison(runs),
        "Training": _training(runs, plots),
        "Samples": sections.samples(runs),
        "Evaluation": _evaluation(runs, plots),
        "Router": _router(runs, plots),
        "History": sections.history(runs, now),
        "Configuration": sections.configuration(runs),
        "Environment": sections.environment(runs),
        "Notes": sections.notes(runs, POINTS),
    }
    shown = {title: content for title, content in parts.items() if content}
    title = ", ".join(run.name for run in runs)
    body = [
        node("h1", title),
        node(
            "p", f"Made {moment(now)} UTC by ahpa_scale {ahpa_scale.__version__}.", class_="quiet"
        ),
        _contents(list(shown)),
        *(_section(title, content) for title, content in shown.items()),
        data("figures", plots.figures),
        data("clocks", [clocks_of(run.metrics) if run.metrics else None for run in runs]),
    ]
    scripts = [get_plotlyjs(), _asset("page.js")]
    return document(f"Report: {title}", _asset("page.css"), body, scripts)


class _Plots:
    """Figures of the page by number, and their places in it."""

    def __init__(self) -> None:
        self.figures: list[dict[str, Any]] = []

    def place(self, drawn: Drawn, wide: bool = False) -> Element:
        """The heading and the empty place of a figure, which the page's script fills."""
        attributes = {"data-by-batch": "yes"} if drawn.by_batch else {}
        plot = node(
            "div",
            class_="plot",
            role="img",
            aria_label=drawn.title,
            style=f"height:{drawn.height}px",
            data_figure=str(len(self.figures)),
        )
        plot.attrib.update(attributes)
        self.figures.append(json.loads(str(drawn.figure.to_json())))
        return node("div", node("h3", drawn.title), plot, class_="wide" if wide else "plain")

    def grid(self, drawn: Sequence[Drawn]) -> Element:
        """Figures beside and below each other."""
        return node("div", *map(self.place, drawn), class_="plots")


def _training(runs: Sequence[Run], plots: _Plots) -> list[Content]:
    main, others = figures.training_figures(runs), figures.other_figures(runs)
    options = [node("option", words, value=name) for name, words in _AXES.items()]
    axis = node("select", *options, id="axis")
    if not main and not others:
        axis.attrib["hidden"] = "hidden"
        return [axis, node("p", "No rows of training were found.", class_="quiet")]
    content: list[Content] = [
        node("p", node("label", "Horizontal axis: ", axis)),
        node("p", "Drag to zoom; double-click to go back.", class_="quiet mouse"),
        plots.grid(main),
    ]
    if others:
        left_out = len(others) - _MOST_OTHERS
        told = f" ({left_out} more are left out)" if left_out > 0 else ""
        summary = node("summary", f"Everything else that was logged{told}")
        content.append(node("details", summary, plots.grid(others[:_MOST_OTHERS])))
    return content


def _evaluation(runs: Sequence[Run], plots: _Plots) -> list[Content]:
    drawn = figures.evaluation_figures(runs)
    noise = figures.noise_figure(runs)
    if not drawn:
        return []
    return [plots.grid([*drawn, *([noise] if noise else [])]), *sections.evaluation_tables(runs)]


def _router(runs: Sequence[Run], plots: _Plots) -> list[Content]:
    content: list[Content] = []
    for run in runs:
        drawn = router_figures(run.metrics.routers if run.metrics else [])
        if drawn:
            content += [node("h3", run.name)] if len(runs) > 1 else []
            content.append(plots.grid(drawn))
    return content


def _contents(titles: Sequence[str]) -> Element:
    links = [node("li", node("a", title, href=f"#{title.lower()}")) for title in titles]
    return node("nav", node("ul", *links), aria_label="Contents")


def _section(title: str, content: Sequence[Content]) -> Element:
    return node("section", node("h2", title), *content, id=title.lower())


def _asset(name: str) -> str:
    return (resources.files("ahpa_scale.report") / name).read_text(encoding="utf-8")
