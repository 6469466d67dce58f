# SPDX-License-Identifier: Apache-2.0
"""Numbers and times as people read them."""

from __future__ import annotations

from datetime import datetime, timezone

UNKNOWN = "-"
_LATEST = 253402300799  # the end of the year 9999


def number(value: float | None) -> str:
    """Five digits, or a dash."""
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if abs(value) >= 1e5 else f"{value:.5g}"


def count(value: int | None) -> str:
    """With thousands apart, or a dash."""
    return UNKNOWN if value is None else f"{value:,}"


def moment(seconds: float | None) -> str:
    """Seconds since 1970 as UTC, or a dash."""
    if seconds is None or not 0 <= seconds <= _LATEST:
        return UNKNOWN
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M")


def interval(ends: tuple[float, float] | None) -> str:
    """``[low, high]``; empty without one."""
    return "" if ends is None else f" [{number(ends[0])}, {number(ends[1])}]"
