# SPDX-License-Identifier: Apache-2.0
"""Small alignments, with the settings of head and router by names of their own."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from torch import nn

from ahpa_scale.method import (
    AlignmentSettings,
    AlignmentShape,
    HeadSettings,
    PriorAlignment,
    RouterSettings,
)

_ROUTER = {each.name for each in fields(RouterSettings)}
_SHAPE = {each.name for each in fields(AlignmentShape)}


def nested(options: dict[str, Any]) -> dict[str, Any]:
    """Options by flat names (`head_width`, `objective`) as those of AHPA."""
    found = {name: value for name, value in options.items() if name not in _ROUTER}
    router = {name: value for name, value in options.items() if name in _ROUTER}
    if router:
        found["router"] = RouterSettings(**router)
    if "head_width" in found:
        found["head"] = HeadSettings(found.pop("head", "mlp"), found.pop("head_width"))
    return found


def prior_alignment(router: nn.Module, **options: Any) -> PriorAlignment:
    """A module of the mathematics alone: shape and settings by flat names."""
    shape = {name: options.pop(name) for name in _SHAPE & options.keys()}
    beside = {name: options.pop(name) for name in {"gap", "whitening"} & options.keys()}
    defaults = {"loss": "cosine", "spatial_norm": 0.6, "prior_weight": 0.5}
    settings = AlignmentSettings(**nested({**defaults, **options}))
    return PriorAlignment(AlignmentShape(**shape), settings, router=router, **beside)
