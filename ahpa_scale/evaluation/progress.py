# SPDX-License-Identifier: Apache-2.0
"""How fast a run reaches a quality: EP_FID@k, and steps to the quality of another run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ahpa_scale.evaluation.measures import title_of

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Reached:
    """When a run reaches a quality.

    Attributes:
        measure: what is compared; a lower value is better.
        goal: the value to reach.
        batches: of the first checkpoint that reaches it; None if none does.
        epochs: the same in passes over the data; None also if their length is unknown.
    """

    measure: str
    goal: float
    batches: int | None
    epochs: float | None = None


def epochs_to_fid(rows: Sequence[Row], goal: float, images_per_epoch: int | None) -> Reached:
    """EP_FID@k: passes over the data until the FID without guidance is at most `goal`.

    RAEv2 (arXiv 2605.18324). The first checkpoint that reaches it counts, without interpolation, so
    the true number lies between the checkpoint before and this one.

    Args:
        rows: a run's rows, oldest first, made without guidance.
        goal: k.
        images_per_epoch: pictures in the run's data set; None: unknown.
    """
    row = _first(rows, "fid", goal)
    if row is None:
        return Reached("fid", goal, None)
    epochs = None if images_per_epoch is None else row["num_images"] / images_per_epoch
    return Reached("fid", goal, row["batch"], epochs)


def steps_to_quality(rows: Sequence[Row], others: Sequence[Row], measure: str) -> Reached | None:
    """Batches until a run is as good as another one's last checkpoint.

    Args:
        rows: the run's rows, oldest first.
        others: the other run's rows, oldest first, made with the same settings.
        measure: name of a measure whose low values are good.

    Returns:
        None if the other run's last row lacks the measure.
    """
    goal = others[-1].get(measure) if others else None
    if goal is None or not math.isfinite(goal):
        return None
    row = _first(rows, measure, goal)
    return Reached(measure, goal, None if row is None else row["batch"])


def told(reached: Reached, others: Sequence[Row]) -> str:
    """A line for people, with the share of the other run's batches."""
    title = "held-out loss" if reached.measure == "flow" else title_of(reached.measure)
    last = others[-1]["batch"]
    quality = f"{title} {reached.goal:.5g}, the other run's at ba{last}"
    if reached.batches is None:
        return f"{quality}: not reached"
    return f"{quality}: reached at ba{reached.batches}, {reached.batches / last:.2f} of its batches"


def _first(rows: Sequence[Row], measure: str, goal: float) -> Row | None:
    values = ((row, row.get(measure)) for row in rows)
    return next((row for row, value in values if value is not None and value <= goal), None)
