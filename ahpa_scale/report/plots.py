# SPDX-License-Identifier: Apache-2.0
"""What the page's figures share. Colours of text and grid are the page's own: see page.js.

Legend: T bins of the noise level t.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ahpa_scale.printable import printable

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

#: Okabe and Ito's colours, which stay apart in the common kinds of colour blindness and on a light
#: and a dark page. From the seventh run on they come again with another dash.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES = ("solid", "dash", "dot", "dashdot")
#: Marks tell lines apart without any colour.
_MARKS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "star")
#: Around the axes, in CSS pixels.
MARGIN = {"l": 56, "r": 12, "t": 8, "b": 44}


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


def line_over_t(figure: Figure, values_T: Sequence[float | None], name: str, place: int) -> None:
    """Adds a line over the noise level, in the looks of its place among others.

    Args:
        figure: takes the line.
        values_T: a value for each of T equal bins; None is a gap.
        name: for the legend.
        place: from 0.
    """
    bins = len(values_T)
    figure.add_scatter(
        x=[(number + 0.5) / bins for number in range(bins)],
        y=list(values_T),
        mode="lines+markers",
        name=plain(name),
        marker={"symbol": _MARKS[place % len(_MARKS)], "size": 7},
        line={"color": colour_of(place), "dash": dash_of(place), "width": 2},
    )


def new_figure() -> Figure:
    """An empty figure."""
    from plotly.graph_objects import Figure

    return Figure(layout={"template": {}, "margin": MARGIN, "hovermode": "x"})


def set_axes(figure: Figure, x_title: str, *, several: bool) -> None:
    """Sets the axes, and a legend if there are several lines."""
    legend = {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"}
    figure.update_layout(showlegend=several, legend=legend)
    figure.update_xaxes(title_text=x_title, title_standoff=6)
    figure.update_yaxes(automargin=True)


def colour_of(place: int) -> str:
    """The colour of a line by its place among others."""
    return COLOURS[place % len(COLOURS)]


def dash_of(place: int) -> str:
    """The dash of a line by its place among others."""
    return _DASHES[place // len(COLOURS) % len(_DASHES)]


def plain(text: str) -> str:
    """Untrusted text as plotly shows it unchanged: it reads its texts as a kind of HTML."""
    return html.escape(printable(text), quote=False)
