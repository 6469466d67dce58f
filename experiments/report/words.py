# SPDX-License-Identifier: Apache-2.0
"""Numbers as text, and sentences that several sections share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from experiments.analysis import BETTER
from experiments.statistics import Bounds, Estimate

NAMES = {
    "fd": "FD",
    "kid": "KID",
    "accuracy": "accuracy",
    "flow": "flow loss",
    "layout_error": "layout error",
    "shape_accuracy": "shape accuracy",
    "texture_distance": "texture distance",
}


def code(name: object) -> str:
    """A name as code."""
    return f"`{name}`"


def listed(items: Iterable[object], empty: str = "none") -> str:
    """``a, b, c``, or `empty`."""
    return ", ".join(map(str, items)) or empty


def codes(names: Iterable[object]) -> str:
    """``a``, ``b``: names as code; ``no variant`` if there are none."""
    return listed(map(code, names), empty="no variant")


def plural(count: int, word: str) -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{count} {word}{'' if count == 1 else 's'}"


def decimals(values: Iterable[float]) -> int:
    """Decimals with which the largest of the values has four digits."""
    largest = max((abs(v) for v in values if math.isfinite(v) and v), default=1.0)
    return min(6, max(0, 3 - math.floor(math.log10(largest))))


def number(value: float, places: int, sign: bool = False) -> str:
    """A number with `places` decimals, never ``-0.00``; NaN is ``diverged``, infinity ``open``."""
    if math.isnan(value):
        return "diverged"
    if math.isinf(value):
        return "open"
    text = f"{value:+.{places}f}" if sign else f"{value:.{places}f}"
    return text if any(c in "123456789" for c in text) else text.replace("-", "").replace("+", "")


def bounds(interval: Bounds | None, places: int, sign: bool = False) -> str:
    """``[low, high]``, or a dash if there is no interval (one seed)."""
    if interval is None:
        return "-"
    return f"[{number(interval[0], places, sign)}, {number(interval[1], places, sign)}]"


def spread(estimate: Estimate, places: int) -> str:
    """``mean ± deviation``."""
    if math.isnan(estimate.mean):
        return "diverged"
    if math.isnan(estimate.deviation):
        return number(estimate.mean, places)
    return f"{number(estimate.mean, places)} ± {number(estimate.deviation, places)}"


def judged(estimate: Estimate, metric: str) -> str:
    """``better``, ``worse`` or ``undecided`` by the t-interval; ``no interval`` for one seed."""
    sign = estimate.sign
    if sign is None:
        return "diverged" if math.isnan(estimate.mean) else "no interval"
    return {0: "undecided", BETTER[metric]: "better", -BETTER[metric]: "worse"}[sign]


def grouped(verdicts: Mapping[str, str], order: Sequence[str]) -> str:
    """``better: a, b; undecided: c``, in the given order of verdicts, without empty ones."""
    parts = []
    for verdict in order:
        names = [name for name in verdicts if verdicts[name] == verdict]
        if names:
            parts.append(f"{verdict}: {codes(names)}")
    return "; ".join(parts)


def seeds_caveat(counts: Iterable[int]) -> str:
    """Which interval decides with so few seeds; empty from ten seeds on."""
    several = sorted(set(counts))
    if not several or several[0] >= 10:
        return ""
    if several[-1] == 1:
        return "One seed allows no interval, so nothing here is decided."
    return (
        f"With {plural(several[-1], 'seed')} at most the bootstrap interval is too narrow: the "
        "t-interval decides."
    )
