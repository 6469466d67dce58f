# SPDX-License-Identifier: Apache-2.0
"""The report's figures, as PNG bytes that are the same for the same numbers.

Legend: G levels, L mapped levels, D blocks, T t-bins; t = 0 is data, t = 1 is noise.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

# From Okabe and Ito's palette: distinct with the common kinds of colour blindness, too.
BLUE, ORANGE, GREEN, RED, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
GREY = "#777777"
_LINES = ((BLUE, "o"), (RED, "s"), (GREEN, "^"), (PURPLE, "D"), (ORANGE, "v"), ("#000000", "P"))
_COLUMNS = 4
NOISE = "noise level t (0 = data, 1 = noise)"


@dataclass(frozen=True)
class SweepLine:
    """One family over a key: (value as written, one number per seed)."""

    name: str
    points: tuple[tuple[str, Sequence[float]], ...]


def draw_curves(
    control: Mapping[int, Mapping[int, float]],
    variants: Mapping[str, Mapping[int, Mapping[int, float]]],
    metric: str,
) -> bytes:
    """A positive metric over steps, both logarithmic: one panel per variant, the control in each.

    Args:
        control: seed -> step -> value, of the control.
        variants: the same for each variant; the names become titles.
        metric: what the vertical axis shows.
    """

    def panel(axes: Axes, name: str) -> None:
        labels = []
        for curves, colour, label in ((control, GREY, "none"), (variants[name], BLUE, name)):
            mean = _curves(axes, curves, colour)
            if mean:
                axes.plot(*zip(*mean, strict=True), color=colour, lw=2.2, marker="o", ms=4)
                labels.append((mean[-1], label, colour))
        # The upper label goes above its line's end and the lower one below, so that they never
        # overlap.
        for place, (point, label, colour) in enumerate(
            sorted(labels, key=lambda entry: entry[0][1])
        ):
            _end_label(axes, point, label, colour, (-5, 5)[place] if len(labels) > 1 else 0)
        ends = [curve[max(curve)] for curve in control.values() if curve]
        if ends:
            axes.axhline(float(np.exp(np.mean(np.log(ends)))), color=GREY, lw=1, ls=":")
        axes.set(xscale="log", yscale="log", title=name)
        _log_ticks(axes)

    steps = sorted(
        {s for c in [control, *variants.values()] for curve in c.values() for s in curve}
    )

    def finish(axes: Axes) -> None:
        axes.xaxis.set_major_locator(FixedLocator(_apart(steps)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        # Room for the labels at the lines' ends.
        axes.set_xlim(steps[0] * 0.9, steps[-1] * (steps[-1] / steps[0]) ** 0.28 * 1.1)

    return draw_panels(sorted(variants), panel, "steps", metric, finish)


def _curves(
    axes: Axes, curves: Mapping[int, Mapping[int, float]], colour: str
) -> list[tuple[int, float]]:
    """Thin lines of the seeds; returns the geometric mean where every seed has a value."""
    for _, curve in sorted(curves.items()):
        points = [(step, value) for step, value in sorted(curve.items()) if value > 0]
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, lw=0.8, alpha=0.45)
    steps = sorted({step for curve in curves.values() for step in curve})
    mean = []
    for step in steps:
        values = [curve[step] for curve in curves.values() if step in curve]
        if len(values) == len(curves) and all(v > 0 and math.isfinite(v) for v in values):
            mean.append((step, math.exp(math.fsum(map(math.log, values)) / len(values))))
    return mean


def draw_flow_differences(differences: Mapping[str, Mapping[int, Sequence[float]]]) -> bytes:
    """Held-out flow loss minus the control's, over noise: one panel per variant.

    Args:
        differences: variant -> seed -> one number per t-bin.
    """

    def panel(axes: Axes, name: str) -> None:
        axes.axhline(0, color=GREY, lw=1)
        table_ST = np.array([row for _, row in sorted(differences[name].items())], dtype=float)
        centre_T = (np.arange(table_ST.shape[1]) + 0.5) / table_ST.shape[1]
        for row_T in table_ST:
            axes.plot(centre_T, row_T, color=BLUE, lw=0.8, alpha=0.45)
        axes.plot(centre_T, table_ST.mean(axis=0), color=BLUE, lw=2.2, marker="o", ms=4)
        axes.set(title=name, xlim=(0, 1))
        axes.grid(alpha=0.25)

    return draw_panels(sorted(differences), panel, NOISE, "flow loss minus that of none")


def draw_sweep(lines: Sequence[SweepLine], key: str) -> bytes:
    """FD over a key: numbers on an axis, logarithmic if their range is wide; words side by side."""
    words = list(dict.fromkeys(value for line in lines for value, _ in line.points))
    try:
        places = {value: float(value) for value in words}
        joined, low, high = "-", min(places.values()), max(places.values())
        logarithmic = low > 0 and high >= 4 * low
    except ValueError:
        places, logarithmic = {value: float(n) for n, value in enumerate(words)}, False
        joined = ""
    with _quiet_style():
        figure = Figure(figsize=(7.5, 4.4), layout="constrained")
        axes = figure.subplots()
        for number, line in enumerate(lines):
            colour, marker = _LINES[number % len(_LINES)]
            means = []
            for value, numbers in line.points:
                finite = [fd for fd in numbers if math.isfinite(fd)]
                axes.plot([places[value]] * len(finite), finite, ".", color=colour, alpha=0.5)
                if finite and len(finite) == len(numbers):
                    means.append((places[value], float(np.mean(finite))))
            if means:
                axes.plot(*zip(*means, strict=True), color=colour, marker=marker, ls=joined, lw=2)
                _end_label(axes, means[-1], line.name, colour)
        if logarithmic:
            axes.set_xscale("log")
        axes.set_xticks(list(places.values()), list(places))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set(xlabel=key, ylabel="FD")
        axes.margins(x=0.08)
        left, right = axes.get_xlim()
        # Room for the names at the lines' ends.
        axes.set_xlim(
            left, right * (right / left) ** 0.3 if logarithmic else right + 0.3 * (right - left)
        )
        axes.grid(alpha=0.25)
        return _png(figure)


def draw_panels(
    names: Sequence[str],
    draw: Callable[[Axes, str], None],
    across: str,
    up: str,
    finish: Callable[[Axes], None] | None = None,
    columns: int = _COLUMNS,
    size: tuple[float, float] = (3.2, 2.7),
) -> bytes:
    """Small panels with shared axes, three or four in a row."""
    width = min(columns, max(1, len(names)))
    rows = max(1, math.ceil(len(names) / width))
    with _quiet_style():
        figure = Figure(figsize=(size[0] * width + 0.5, size[1] * rows + 0.4), layout="constrained")
        grid = figure.subplots(rows, width, sharex=True, sharey=True, squeeze=False)
        for number, axes in enumerate(grid.flat):
            if number >= len(names):
                axes.set_visible(False)
                continue
            draw(axes, names[number])
            if number + width >= len(names):
                axes.xaxis.set_tick_params(labelbottom=True)
        if finish is not None:
            finish(grid[0, 0])
        figure.supxlabel(across, fontsize=10)
        figure.supylabel(up, fontsize=10)
        return _png(figure)


def _end_label(
    axes: Axes, point: tuple[float, float], text: str, colour: str, up: float = 0
) -> None:
    axes.annotate(
        text, point, (6, up), textcoords="offset points", color=colour, fontsize=8, va="center"
    )


def _log_ticks(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.tick_params(axis="y", which="minor", labelsize=7)
    axes.grid(alpha=0.25, which="both")


def _apart(steps: Sequence[int]) -> list[int]:
    """Steps far enough apart for their labels; the last is always among them."""
    kept = [steps[-1]]
    for step in reversed(steps[:-1]):
        if kept[-1] / step >= 1.8:
            kept.append(step)
    return kept[::-1]


def _quiet_style() -> AbstractContextManager[None]:
    """Matplotlib's own defaults, whatever the user's settings are."""
    plain: AbstractContextManager[None] = style.context(
        ["default", {"font.size": 9, "axes.titlesize": 10}]
    )
    return plain


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    content = io.BytesIO()
    # Without matplotlib's version in the file, the same numbers give the same bytes.
    figure.savefig(content, format="png", dpi=110, metadata={"Software": None})
    return content.getvalue()
