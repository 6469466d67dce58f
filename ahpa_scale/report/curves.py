# SPDX-License-Identifier: Apache-2.0
"""Long columns as short curves: mean and range of equal parts."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ahpa_scale.report.metrics import Column, Metrics

#: Most points of a curve. Beyond it, a point is the mean of a part.
POINTS = 600
#: A speed is measured over parts, because single rows are noisy.
_SPEEDS = 200
_RECENT = 50

Gap = float | None


@dataclass(frozen=True)
class Curve:
    """Points of a curve; None is a gap, where no number was finite.

    Attributes:
        batches: of each point: the last batch of its part.
        means: mean of the part.
        lows, highs: its range; empty if each point is one row.
        rows: how many rows it was made of.
    """

    batches: list[int]
    means: list[Gap]
    lows: list[Gap]
    highs: list[Gap]
    rows: int


def curve_of(column: Column, most: int = POINTS) -> Curve | None:
    """The curve of a column; None if no number in it is finite."""
    batches, values = column.batches, column.values
    if not any(math.isfinite(value) for value in values):
        return None
    if len(values) <= most:
        return Curve(list(batches), [_shown(value) for value in values], [], [], len(values))
    ends, means, lows, highs = [], [], [], []
    for start, stop in _parts(len(values), most):
        part = [value for value in values[start:stop] if math.isfinite(value)]
        ends.append(batches[stop - 1])
        means.append(_shown(math.fsum(part) / len(part)) if part else None)
        lows.append(_shown(min(part)) if part else None)
        highs.append(_shown(max(part)) if part else None)
    return Curve(ends, means, lows, highs, len(values))


def speed_of(metrics: Metrics) -> Curve | None:
    """Images per second of training, all ranks together; None if the rows don't tell."""
    rows = len(metrics.batches)
    batches: list[int] = []
    speeds: list[Gap] = []
    for start, stop in _parts(rows - 1, min(_SPEEDS, rows - 1)) if rows > 1 else ():
        batches.append(metrics.batches[stop])
        speeds.append(_speed(metrics, start, stop))
    if all(speed is None for speed in speeds):
        return None
    return Curve(batches, speeds, [], [], rows)


def last_speed(metrics: Metrics) -> Gap:
    """Images per second over the last rows."""
    last = len(metrics.batches) - 1
    return _speed(metrics, max(0, last - _RECENT), last) if last > 0 else None


def last_value(metrics: Metrics, name: str) -> Gap:
    """Mean of the last finite numbers of a column, at most 50."""
    column = metrics.columns.get(name)
    recent = column.values[-_RECENT:] if column is not None else array("d")
    finite = [value for value in recent if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else None


def clocks_of(metrics: Metrics, most: int = POINTS) -> dict[str, list[Gap]]:
    """Images seen and hours of training at some batches, for another horizontal axis."""
    rows = range(len(metrics.batches))
    step = max(1, len(rows) // most)
    chosen = [*rows[:1], *rows[step:-1:step], *rows[1:][-1:]]
    return {
        "batches": [metrics.batches[row] for row in chosen],
        "images": [_shown(metrics.images[row]) for row in chosen],
        "hours": [_shown(metrics.seconds[row] / 3600) for row in chosen],
    }


def _speed(metrics: Metrics, start: int, stop: int) -> Gap:
    seconds = metrics.seconds[stop] - metrics.seconds[start]
    images = metrics.images[stop] - metrics.images[start]
    return _shown(images / seconds) if seconds > 0 and images >= 0 else None


def _parts(rows: int, parts: int) -> Iterator[tuple[int, int]]:
    for part in range(parts):
        yield rows * part // parts, rows * (part + 1) // parts


def _shown(value: float) -> Gap:
    """Six digits are more than a screen shows."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def mean_weight(weight_T: Sequence[Gap], count_T: Sequence[float]) -> Gap:
    """A level's weight averaged over pictures, from the bins of t that saw any."""
    seen = [
        (weight, count)
        for weight, count in zip(weight_T, count_T, strict=True)
        if weight is not None and count > 0
    ]
    total = math.fsum(count for _, count in seen)
    return _shown(math.fsum(weight * count for weight, count in seen) / total) if total else None
