# SPDX-License-Identifier: Apache-2.0
"""`metrics.jsonl` as columns. A run of 400,000 rows takes some 100 MB of memory.

Legend: G levels, T bins of the noise level t.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, Field

from ahpa_scale import typed_json
from ahpa_scale.errors import UserError
from ahpa_scale.report.rows import Faults, Row, count_of, number_of
from ahpa_scale.run_files import METRICS_FILE

#: Keys of a row that are no curves.
_CLOCKS = ("batch", "num_images", "epoch", "seconds", "router", "nonfinite")
_MOST_COLUMNS = 200
_MOST_ROUTERS = 1024
_NAN = math.nan

_Weights_T = Annotated[list[float | None], Field(min_length=1, max_length=200)]


class Router(BaseModel):
    """A record of the router.

    Attributes:
        batch: batches trained.
        levels: names of the G levels.
        weight_GT: mean weight; None in bins without pictures.
        loss_GT: mean alignment loss; the same.
        count_T: pictures in each bin.
    """

    model_config = {**typed_json.STRICT, "extra": "ignore"}

    batch: Annotated[int, Field(ge=0, lt=1 << 53)]
    levels: Annotated[list[str], Field(min_length=1, max_length=64)]
    weight_GT: list[_Weights_T]
    loss_GT: list[_Weights_T]
    count_T: Annotated[list[float], Field(min_length=1, max_length=200)]

    @property
    def fits(self) -> bool:
        """Whether all parts have the same G and T."""
        bins = len(self.count_T)
        tables = (self.weight_GT, self.loss_GT)
        return all(len(table_GT) == len(self.levels) for table_GT in tables) and all(
            len(row_T) == bins for table_GT in tables for row_T in table_GT
        )


@dataclass
class Column:
    """What was logged under one name. NaN stands for a number that was not finite."""

    batches: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))


@dataclass
class Metrics:
    """The rows of a run.

    Attributes:
        batches: batches trained at each row, growing.
        images: images seen; NaN if a row does not tell.
        seconds: of training; the same.
        columns: everything else, by name.
        routers: records of the router with the newest one's levels; every second one goes when
            they become many.
        nonfinite: rows with a number that was not finite.
    """

    batches: array[int] = field(default_factory=lambda: array("q"))
    images: array[float] = field(default_factory=lambda: array("d"))
    seconds: array[float] = field(default_factory=lambda: array("d"))
    columns: dict[str, Column] = field(default_factory=dict)
    routers: list[Router] = field(default_factory=list)
    nonfinite: int = 0


def read_metrics(rows: Iterable[Row], faults: Faults) -> Metrics:
    """The columns of rows; damaged ones are left out and counted."""
    told = Metrics()
    unnamed: set[str] = set()
    for row in rows:
        batch = count_of(row, "batch")
        if batch is None:
            faults.skip(METRICS_FILE, "a row without a batch")
            continue
        if told.batches and batch <= told.batches[-1]:
            faults.skip(METRICS_FILE, f"batch {batch} comes after batch {told.batches[-1]}")
            continue
        told.batches.append(batch)
        for clock, key in ((told.images, "num_images"), (told.seconds, "seconds")):
            number = number_of(row, key)
            clock.append(_NAN if number is None else number)
        told.nonfinite += bool(row.get("nonfinite"))
        _add_values(told, row, batch, unnamed)
        if "router" in row:
            _add_router(told, row["router"], faults)
    if unnamed:
        faults.add(f"{METRICS_FILE}: of more than {_MOST_COLUMNS} names the others are left out")
    return told


def _add_values(told: Metrics, row: Row, batch: int, unnamed: set[str]) -> None:
    for key, value in row.items():
        if key in _CLOCKS or not (value is None or type(value) in (int, float)):
            continue
        column = told.columns.get(key)
        if column is None:
            if len(told.columns) >= _MOST_COLUMNS:
                unnamed.add(METRICS_FILE)
                continue
            column = told.columns[key] = Column()
        number = number_of(row, key)
        column.batches.append(batch)
        column.values.append(_NAN if number is None else number)


def _add_router(told: Metrics, record: Any, faults: Faults) -> None:
    try:
        router = typed_json.fit(Router, record, "a record of the router")
    except UserError as error:
        faults.skip(METRICS_FILE, str(error))
        return
    if not router.fits:
        faults.skip(METRICS_FILE, "a record of the router has parts of several sizes")
        return
    if told.routers and told.routers[-1].levels != router.levels:
        told.routers.clear()
    if len(told.routers) >= _MOST_ROUTERS:
        del told.routers[::2]
    told.routers.append(router)
