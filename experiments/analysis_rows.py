# SPDX-License-Identifier: Apache-2.0
"""Result rows as they are stored: one JSON object a line, each read and checked.

A row is a run at a checkpoint, a floor, or a recoverability map. A file holds one study.
Legend: G levels of a router, L levels of a map, D blocks, T t-bins.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ahpa_scale.config.errors import ConfigError, choices
from ahpa_scale.errors import UserError

_FIELDS: dict[str, tuple[str, ...]] = {
    "run": ("dataset", "variant", "seed", "step", "images", "digest", "build", "metrics", "curves"),
    "floor": ("dataset", "name", "metrics"),
    "map": ("dataset", "variant", "seed", "step", "map"),
}


@dataclass(frozen=True)
class Run:
    """One cell at one checkpoint, judged by one build of its data set; `where` is its file and
    line.
    """

    study: str
    dataset: str
    variant: str
    seed: int
    step: int
    images: int
    digest: str
    metrics: Mapping[str, float]
    flow_T: tuple[float, ...]
    router: Mapping[str, Any] | None
    build: str
    where: str


@dataclass(frozen=True)
class Floor:
    """Scores of pictures that no model drew: ``real`` or ``reconstruction``."""

    study: str
    dataset: str
    name: str
    metrics: Mapping[str, float]
    where: str


@dataclass(frozen=True)
class RecoverabilityMap:
    """The share of each level that a linear readout of each block recovers, per t-bin."""

    study: str
    dataset: str
    variant: str
    seed: int
    step: int
    levels: tuple[str, ...]
    blocks: tuple[int, ...]
    r2_LDT: tuple[tuple[tuple[float, ...], ...], ...]
    where: str


Row = Run | Floor | RecoverabilityMap


def read_file(path: Path) -> list[Row]:
    """All rows of one result file; a floor or map without a study gets the file's.

    Raises:
        ConfigError: the file cannot be read, is empty, mixes studies, or has a broken row.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(str(path), "", f"cannot read: {why}") from error
    rows = [(f"{path}:{n}", _parse(line, f"{path}:{n}")) for n, line in enumerate(lines, 1) if line]
    if not rows:
        raise ConfigError(str(path), "", "holds no result rows")
    study, first = path.stem, ""
    for where, row in rows:
        named = row.get("study", study)
        if first and named != study:
            raise ConfigError(where, "study", f"{named!r}, but {first} has {study!r}: one a file")
        if "study" in row:
            study, first = str(named), first or where
    return [_build(row, study, where) for where, row in rows]


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(where, "", f"not JSON: {error.msg}, column {error.colno}") from error
    if not isinstance(row, dict):
        raise ConfigError(where, "", "not a JSON object")
    if "kind" not in row:
        raise ConfigError(where, "kind", f"missing; {choices('', _FIELDS)}")
    kind = str(row["kind"])
    if kind not in _FIELDS:
        raise ConfigError(where, "kind", f"{kind!r} is not known; {choices(kind, _FIELDS)}")
    for key in _FIELDS[kind]:
        if key not in row:
            raise ConfigError(where, key, f"missing from this {kind} row")
    return row


def _build(row: dict[str, Any], study: str, where: str) -> Row:
    key = ""
    try:
        if row["kind"] == "floor":
            key = "metrics"
            numbers = _numbers(row["metrics"])
            return Floor(study, str(row["dataset"]), str(row["name"]), numbers, where)
        key = "seed, step"
        dataset, variant = str(row["dataset"]), str(row["variant"])
        cell = (study, dataset, variant, _whole(row["seed"]), _whole(row["step"], least=1))
        if row["kind"] == "map":
            key = "map"
            return RecoverabilityMap(*cell, *_map(row["map"]), where)
        key = "metrics"
        numbers = _numbers(row["metrics"])
        key = "images"
        images = _whole(row["images"])
        key = "curves"
        flow_T = tuple(map(_number, row["curves"].get("flow_t") or ()))
        router = _router(row["curves"].get("router"))
        told = (str(row["digest"]), numbers, flow_T, router, str(row["build"]))
        return Run(*cell, images, *told, where)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        text = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ConfigError(where, key, f"broken: {text}") from error


def _number(value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return float(value)


def _whole(value: Any, least: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise TypeError(f"{value!r} is not a whole number from {least} on")
    return value


def _numbers(metrics: Any) -> dict[str, float]:
    return {str(name): _number(value) for name, value in sorted(metrics.items())}


def _router(router: Any) -> dict[str, Any] | None:
    if router is None:
        return None
    levels = [str(level) for level in router["levels"]]
    table = {}
    for name in ("weight_GT", "loss_GT"):
        table[name] = [[_number(value) for value in row] for row in router[name]]
        if len(table[name]) != len(levels) or len({len(row) for row in table[name]}) != 1:
            raise UserError(f"router.{name} needs one row of equal length for each level")
    return {"levels": levels, **table}


def _map(content: Any) -> tuple[Any, Any, Any]:
    levels = tuple(str(level) for level in content["levels"])
    blocks = tuple(int(block) for block in content["blocks"])
    bins = int(content["bins"])
    r2_LDT = tuple(tuple(tuple(map(_number, t)) for t in level) for level in content["r2_LDT"])
    shapes = {(len(level), len(row)) for level in r2_LDT for row in level}
    if len(r2_LDT) != len(levels) or shapes != {(len(blocks), bins)}:
        raise UserError(f"r2_LDT must be {len(levels)} x {len(blocks)} x {bins}")
    return levels, blocks, r2_LDT
