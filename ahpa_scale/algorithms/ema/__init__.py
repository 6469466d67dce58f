# SPDX-License-Identifier: Apache-2.0
"""Exponential moving average of the weights: see README.md beside this file."""

from __future__ import annotations

from .ema import EMA, reshard, tracked_parameters, update_ema

__all__ = ["EMA", "reshard", "tracked_parameters", "update_ema"]
