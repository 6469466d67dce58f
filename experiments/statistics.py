# SPDX-License-Identifier: Apache-2.0
"""Intervals over seeds, and how many of the control's steps a variant needs.

Every interval here is at 95 %, each by itself: nothing corrects for looking at many of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ahpa_scale.errors import UserError

LEVEL = 0.95
RESAMPLES = 10_000
_BOOTSTRAP_SEED = 20_260
_BISECTIONS = 200

Bounds = tuple[float, float]
#: Seed -> step -> metric -> value; a value that is not finite means a run that diverged.
Curves = Mapping[int, Mapping[int, Mapping[str, float]]]


@dataclass(frozen=True)
class Estimate:
    """Mean of one number per seed with both intervals.

    Attributes:
        mean: nan when a value is not finite.
        deviation: sample deviation over the seeds; nan below two values.
        count: number of values.
        bootstrap: percentile interval of the resampled mean; None below two values.
        student: t-interval of the mean; None below two values.
    """

    mean: float
    deviation: float
    count: int
    bootstrap: Bounds | None
    student: Bounds | None

    @property
    def sign(self) -> int | None:
        """-1 or 1 if the whole t-interval lies on that side of zero, 0 if it contains zero, and
        None without an interval.
        """
        if self.student is None:
            return None
        low, high = self.student
        return 1 if low > 0 else -1 if high < 0 else 0


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, deviation and intervals of one number per seed.

    Raises:
        UserError: no values.
    """
    if not values:
        raise UserError("no values to take the mean of")
    if not all(math.isfinite(value) for value in values):
        return Estimate(math.nan, math.nan, len(values), None, None)
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Estimate(mean, math.nan, 1, None, None)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
    half = t_quantile(len(values) - 1) * deviation / math.sqrt(len(values))
    student = (mean - half, mean + half)
    return Estimate(mean, deviation, len(values), bootstrap_bounds(values), student)


def bootstrap_bounds(values: Sequence[float], resamples: int = RESAMPLES) -> Bounds:
    """Percentile bootstrap interval of the mean, the same for the same values in any order.

    Below about ten values it is too narrow, because it only resamples these values; for n = 3 it is
    no more than their range.

    Raises:
        UserError: fewer than two values.
    """
    if len(values) < 2:
        raise UserError("a bootstrap needs two values or more")
    values_N = np.sort(np.asarray(values, dtype=np.float64))
    random = np.random.default_rng(_BOOTSTRAP_SEED)
    index_RN = random.integers(0, len(values_N), size=(resamples, len(values_N)))
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values_N[index_RN].mean(axis=1), [tail, 1 - tail])
    return float(low), float(high)


@lru_cache
def t_quantile(freedom: int) -> float:
    """The bound under which Student's |t| with `freedom` degrees stays with probability 0.95.

    Raises:
        UserError: `freedom` is below 1.
    """
    if freedom < 1:
        raise UserError("a t-interval needs two values or more")
    low, high = 0.0, 64.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if _inside(middle, freedom) < LEVEL else (low, middle)
    return high


def _inside(t: float, freedom: int) -> float:
    """P(|T| < t): the finite series for whole degrees (Abramowitz and Stegun 26.7.3-4)."""
    angle = math.atan2(t, math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = 0.0
    for step in range(2 + odd, freedom + 1, 2):
        total += term
        term *= cosine * cosine * (step - 1) / step
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


@dataclass(frozen=True)
class StepsRatio:
    """Steps that a variant needs to reach the control's final value, over the control's steps.

    Attributes:
        ratio: geometric mean over the seeds; a lower bound when `censored` is not empty.
        bootstrap: interval from the logarithms; its upper end is inf when a seed is censored, and
            it is None for one seed.
        student: t-interval from the logarithms, likewise.
        by_seed: ratio of each seed; for a censored one its last step over the control's.
        censored: seeds in which the variant never reached the value; nothing is extrapolated.
        early: seeds in which the variant reached the value by its first checkpoint; that checkpoint
            counts, though the true ratio is smaller.
        own: the control's ratio by the same rule; below 1 when its curve is not monotone. A
            variant's ratio shows a gain only if it lies below this.
    """

    ratio: float
    bootstrap: Bounds | None
    student: Bounds | None
    by_seed: Mapping[int, float]
    censored: tuple[int, ...]
    early: tuple[int, ...]
    own: float

    def line(self) -> str:
        """``ratio R [LOW, HIGH]`` with the t-interval; ``[nan, nan]`` for a single seed."""
        low, high = self.student or (math.nan, math.nan)
        return f"ratio {self.ratio:.3f} [{low:.3f}, {high:.3f}]"

    @property
    def faster(self) -> bool:
        """Whether the whole t-interval lies below 1 and below the control's own ratio."""
        return self.student is not None and self.student[1] < min(1.0, self.own)


def steps_ratio(control: Curves, variant: Curves, metric: str = "fd") -> StepsRatio:
    """The share of the control's steps in which a variant reaches the control's final value.

    It is taken seed by seed. Between checkpoints log(metric) of the best value so far is taken as
    linear in log(step). A seed counts if both have it and the control has its last checkpoint
    there.

    Args:
        control: curves of the control.
        variant: curves of the variant, of the same seeds.
        metric: a positive metric whose small values are good.

    Raises:
        UserError: no seed in common, or a control value that has no logarithm.
    """
    last = max((max(curve) for curve in control.values() if curve), default=0)
    seeds = sorted(s for s in control if last in control[s] and variant.get(s))
    if not seeds:
        raise UserError("control and variant have no seed in common at the control's last step")
    ratios: dict[int, float] = {}
    own, censored, early = [], [], []
    for seed in seeds:
        goal = control[seed][last].get(metric, math.nan)
        if not (math.isfinite(goal) and goal > 0):
            raise UserError(f"the control's {metric} at step {last}, seed {seed}, has no logarithm")
        reached = steps_to(variant[seed], goal, metric)
        ratios[seed] = (max(variant[seed]) if reached is None else reached) / last
        own.append((steps_to(control[seed], goal, metric) or last) / last)
        if reached is None:
            censored.append(seed)
        elif reached == min(variant[seed]):
            early.append(seed)
    logs = estimate([math.log(ratio) for ratio in ratios.values()])
    return StepsRatio(
        ratio=math.exp(logs.mean),
        bootstrap=_from_logs(logs.bootstrap, bool(censored)),
        student=_from_logs(logs.student, bool(censored)),
        by_seed=ratios,
        censored=tuple(censored),
        early=tuple(early),
        own=math.exp(math.fsum(map(math.log, own)) / len(own)),
    )


def steps_to(curve: Mapping[int, Mapping[str, float]], goal: float, metric: str) -> float | None:
    """The step at which the best value so far reaches `goal`; None when it never does.

    If it is reached at the first checkpoint, that checkpoint's step.
    """
    best, previous = math.inf, 0
    for step in sorted(curve):
        value = curve[step].get(metric, math.nan)
        if value <= goal:
            # Below zero there is no logarithm, so the later of the two checkpoints counts.
            if value == goal or not math.isfinite(best) or value <= 0:
                return float(step)
            share = math.log(best / goal) / math.log(best / value)
            return math.exp(math.log(previous) + share * math.log(step / previous))
        if value < best:
            best = value
        previous = step
    return None


def _from_logs(bounds: Bounds | None, censored: bool) -> Bounds | None:
    if bounds is None:
        return None
    return math.exp(bounds[0]), math.inf if censored else math.exp(bounds[1])
