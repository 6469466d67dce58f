# SPDX-License-Identifier: Apache-2.0
"""Composer plug-ins, each in a folder with its method card. Loaded on first use, to start fast."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .ahpa import AHPA as AHPA
    from .ema import EMA as EMA
    from .fully_shard import FullyShard as FullyShard
    from .grad_clip import GradClip as GradClip
    from .guard import Guard as Guard
    from .zero import ZeRO as ZeRO

_HOME = {
    "AHPA": ".ahpa",
    "EMA": ".ema",
    "FullyShard": ".fully_shard",
    "GradClip": ".grad_clip",
    "Guard": ".guard",
    "ZeRO": ".zero",
}

__all__ = ["AHPA", "EMA", "FullyShard", "GradClip", "Guard", "ZeRO"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name], __name__), name)
