# SPDX-License-Identifier: Apache-2.0
"""The table that people see: a line per checkpoint, as they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ahpa_scale.evaluation.measures import Measure

_WIDTHS = {"name": 10, "images": 13, "weights": 7, "held-out loss": 13}
_LEAST_WIDTH = 9
#: Decimals by the measure's kind, the first word of its name.
_DIGITS = {"fid": 3, "sfid": 3, "frechet": 3, "inception": 2, "kid": 5, "mmd": 5}


class Table:
    """Formats rows."""

    def __init__(self) -> None:
        self._begun = False

    def lines(self, row: dict[str, Any], measures: Sequence[Measure] = ()) -> list[str]:
        """A row's line; before the first one the header, and what is not measured."""
        shown = {
            "name": f"ba{row['batch']}",
            "images": f"{row['num_images']:,}",
            "weights": row["weights"],
            "held-out loss": decimals(row["flow"], 5),
            **{measure.title: shown_value(measure) for measure in measures},
        }
        lines = [] if self._begun else [*reasons(measures), _line({name: name for name in shown})]
        self._begun = True
        return [*lines, _line(shown)]


def shown_value(measure: Measure) -> str:
    """A measure's value, with half of its interval."""
    digits = _DIGITS.get(measure.name.split("_")[0], 4)
    value = decimals(measure.value, digits)
    if measure.interval is None:
        return value
    low, high = measure.interval
    return f"{value} ±{decimals((high - low) / 2, digits)}"


def reasons(measures: Sequence[Measure]) -> list[str]:
    """A line for each measure that can't be computed."""
    missing = (measure for measure in measures if measure.reason is not None)
    return [f"no {measure.title}: {measure.reason}" for measure in missing]


def decimals(value: float | None, digits: int) -> str:
    """A number with so many decimals; a dash for none."""
    return "-" if value is None else f"{value:.{digits}f}"


def _line(cells: dict[str, Any]) -> str:
    widths = {name: _WIDTHS.get(name, max(_LEAST_WIDTH, len(name))) for name in cells}
    return "  ".join(cell.rjust(widths[name]) for name, cell in cells.items())
