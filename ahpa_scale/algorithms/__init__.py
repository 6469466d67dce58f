# SPDX-License-Identifier: Apache-2.0
"""Composer plug-ins, a folder each with its method card. Imported on first use, to start fast."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .ahpa import AHPA as AHPA
    from .ema import EMA as EMA
    from .grad_clip import GradClip as GradClip

_HOME = {"AHPA": ".ahpa", "EMA": ".ema", "GradClip": ".grad_clip"}

__all__ = ["AHPA", "EMA", "GradClip"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name], __name__), name)
