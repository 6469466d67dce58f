# SPDX-License-Identifier: Apache-2.0
"""AHPA as a Composer algorithm. The class loads on first use, so that the configuration can read
the kinds' defaults without Composer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ahpa_scale.algorithms.ahpa.kinds import KINDS, ROUTERS, Kind, kind_groups

if TYPE_CHECKING:
    from ahpa_scale.algorithms.ahpa.ahpa import AHPA

__all__ = ["AHPA", "KINDS", "ROUTERS", "Kind", "kind_groups"]


def __getattr__(name: str) -> object:
    if name != "AHPA":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ahpa_scale.algorithms.ahpa.ahpa import AHPA

    return AHPA
