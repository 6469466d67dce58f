# SPDX-License-Identifier: Apache-2.0
"""AHPA as a Composer algorithm. Parts that need torch or Composer load on first use, so the
configuration can read the kinds' defaults without them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ahpa_scale.algorithms.ahpa.kinds import (
    KINDS,
    ROUTERS,
    Kind,
    kind_groups,
    self_groups,
)

if TYPE_CHECKING:
    from ahpa_scale.algorithms.ahpa.ahpa import AHPA
    from ahpa_scale.algorithms.ahpa.gap_map import read_gap_map
    from ahpa_scale.method import Release

__all__ = [
    "AHPA",
    "KINDS",
    "ROUTERS",
    "Kind",
    "Release",
    "kind_groups",
    "read_gap_map",
    "self_groups",
]

_HEAVY = {
    "AHPA": "ahpa_scale.algorithms.ahpa.ahpa",
    "Release": "ahpa_scale.method",
    "read_gap_map": "ahpa_scale.algorithms.ahpa.gap_map",
}


def __getattr__(name: str) -> object:
    if name not in _HEAVY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HEAVY[name]), name)
