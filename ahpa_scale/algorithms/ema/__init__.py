# SPDX-License-Identifier: Apache-2.0
"""Exponential moving average of the weights: see README.md beside this file."""

from __future__ import annotations

from .ema import EMA, update_ema
from .parameters import plain_name, reshard, tracked_parameters

__all__ = ["EMA", "plain_name", "reshard", "tracked_parameters", "update_ema"]
