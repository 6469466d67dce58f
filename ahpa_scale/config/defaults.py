# SPDX-License-Identifier: Apache-2.0
"""Defaults that depend on other keys: the alignment kind's own tap, weight and loss."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ahpa_scale.algorithms.ahpa import KINDS, ROUTERS, Kind
from ahpa_scale.config.schema import Config, Router
from ahpa_scale.config.schema.alignment import MEASURED, ROUTED_KINDS

#: How long a measured release takes.
RAMP = "0.125dur"


def fill_defaults(config: Config) -> Config:
    """Replace nulls by the defaults that they stand for, so that the saved run says what it did.

    Keys without effect stay null; a run without alignment keeps a null tap.
    """
    alignment = config.alignment.model_copy(update=_alignment(config))
    return config.model_copy(update={"alignment": alignment})


def default_tap(kind: str, depth: int) -> int:
    """The 1-based block that `kind` aligns in a backbone of `depth` blocks."""
    return KINDS[kind].tap(depth)


def _alignment(config: Config) -> dict[str, Any]:
    chosen, kind = config.alignment, config.alignment.kind
    if kind == "none":
        # As runs wrote it down before the head's kind had a null: studies compare saved runs.
        return {"head": chosen.head.model_copy(update={"kind": Kind.head})}
    defaults = KINDS[kind]
    filled: dict[str, Any] = {}
    if chosen.weight is None and chosen.gradient_ratio is None:
        filled["weight"] = defaults.weight
    if chosen.tap is None:
        filled["tap"] = default_tap(kind, config.model.geometry().depth)
    if chosen.loss is None:
        filled["loss"] = defaults.loss
    if chosen.head.kind is None:
        filled["head"] = chosen.head.model_copy(update={"kind": defaults.head})
    if chosen.until == MEASURED and chosen.ramp is None:
        filled["ramp"] = RAMP
    if "spatial_norm" not in chosen.model_fields_set:
        filled["spatial_norm"] = None if chosen.whiten else defaults.spatial_norm
    if kind in ROUTED_KINDS:
        filled["router"] = chosen.router.model_copy(update=_router(chosen.router))
    return filled


def _router(chosen: Router) -> dict[str, Any]:
    defaults = asdict(ROUTERS[chosen.objective])
    return {name: value for name, value in defaults.items() if getattr(chosen, name) is None}
