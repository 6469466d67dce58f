# SPDX-License-Identifier: Apache-2.0
"""Whether the testbed can decide: noise, sensitivity, the control's gain, steps to quality."""

from __future__ import annotations

import math
from itertools import pairwise

from experiments.analysis import CONTROL, Group
from experiments.report.comparison import difference, main_variants
from experiments.report.document import Block, Bullets, Heading, Paragraph, Table
from experiments.report.words import (
    NAMES,
    bounds,
    code,
    decimals,
    grouped,
    judged,
    number,
    plural,
    seeds_caveat,
)
from experiments.statistics import StepsRatio, estimate, steps_ratio

AGAIN, POSITIVE, PLACEBO = "none-again", "repa", "placebo"
ENOUGH = 0.10
GOAL = 0.67
_SPEEDS = ("faster", "not faster", "undecided", "not reached", "no interval")


def noise_floor(group: Group) -> list[Block]:
    """How much the control differs from itself: between seeds, and from its duplicates."""
    metrics = group.metrics()
    rows = []
    for step in group.steps(CONTROL):
        by_metric = {m: list(group.values(CONTROL, m, step).values()) for m in metrics}
        if any(len(values) > 1 for values in by_metric.values()):
            cells = (_deviation(by_metric[m], decimals(by_metric[m])) for m in metrics)
            rows.append((f"deviation of `none` over seeds, step {step}", *cells))
    for step in group.steps(AGAIN):
        pairs = {m: group.differences(AGAIN, CONTROL, m, step) for m in metrics}
        if any(pairs.values()):
            places = {m: decimals(group.values(CONTROL, m, step).values()) for m in metrics}
            cells = (_root(list(pairs[m].values()), places[m]) for m in metrics)
            rows.append((f"root mean square of `none-again` minus `none`, step {step}", *cells))
    if not rows:
        return []
    header = ("noise", *(NAMES[metric] for metric in metrics))
    text = _noise_text(group)
    return [Heading(3, "Noise floor"), Table(header, tuple(rows)), Paragraph(text)]


def _deviation(values: list[float], places: int) -> str:
    return number(estimate(values).deviation, places) if len(values) > 1 else "-"


def _root(values: list[float], places: int) -> str:
    if not values:
        return "-"
    return number(math.sqrt(math.fsum(v * v for v in values) / len(values)), places)


def _noise_text(group: Group) -> str:
    text = "Pairing by seed removes the part of this noise that two variants of a seed share."
    values = group.values(CONTROL, "fd", group.steps(CONTROL)[-1])
    if len(values) > 1:
        deviation = estimate(list(values.values())).deviation
        text += (
            f" At the last checkpoint two single runs with different seeds differ by FD "
            f"{number(math.sqrt(2) * deviation, decimals(values.values()))} (one deviation of the "
            "difference) though nothing is different between them; read smaller differences of "
            "single, unpaired runs as noise."
        )
    if AGAIN not in group.variants():
        text += " No duplicates (`none-again`) are stored, so seeds alone give the floor."
    return text


def sensitivity(group: Group) -> list[Block]:
    """Verdict lines: the positive control must be better than none, the placebo must not."""
    if CONTROL not in group.variants() or "fd" not in group.metrics():
        return []
    lines, passed = [], []
    for variant, wanted in ((POSITIVE, True), (PLACEBO, False)):
        step = group.last_compared(variant, CONTROL, "fd")
        delta = difference(group, variant, "fd", step) if step else None
        kind = "positive control" if wanted else "placebo"
        if delta is None:
            lines.append(f"{kind} {code(variant)}: no pairs are stored, so it is not tested.")
            continue
        places = decimals([delta.mean, *(delta.student or ())])
        verdict = judged(delta, "fd")
        passed.append(delta.sign is not None and (verdict == "better") == wanted)
        lines.append(
            f"{kind} {code(variant)} at step {step}: FD {number(delta.mean, places, True)}, t "
            f"{bounds(delta.student, places, True)}, bootstrap "
            f"{bounds(delta.bootstrap, places, True)} against `none` over "
            f"{plural(delta.count, 'seed')}: **{verdict}** "
            f"({'should' if wanted else 'must not'} be better)."
        )
    if len(passed) == 2 and all(passed):
        end = "By the rule (positive control better, placebo not) the testbed **passes**."
    elif len(passed) == 2:
        end = "By the rule (positive control better, placebo not) the testbed does **not** pass."
    else:
        end = "Its sensitivity is **not** shown: both controls are needed."
    caveat = (
        "That the placebo is not better is not that it does nothing: its interval says how much."
    )
    return [
        Heading(3, "Sensitivity of the testbed"),
        Bullets(tuple(lines)),
        Paragraph(f"{end} {caveat}"),
    ]


def control_gain(group: Group) -> list[Block]:
    """How much of its FD the control still loses per doubling of steps."""
    rows, last = [], None
    for first, second in pairwise(group.steps(CONTROL)):
        before, after = (group.values(CONTROL, "fd", step) for step in (first, second))
        doublings = math.log2(second / first)
        both = [(before[seed], after[seed]) for seed in after if seed in before]
        usable = [(a, b) for a, b in both if a > 0 and b > 0]
        if usable:
            gains = [100 * (1 - (b / a) ** (1 / doublings)) for a, b in usable]
            last = estimate(gains)
            cells = (number(last.mean, 1), bounds(last.bootstrap, 1), bounds(last.student, 1))
            rows.append((f"{first} to {second}", str(last.count), *cells))
    if last is None:
        return []
    bar = 100 * ENOUGH
    low, high = last.student or (math.nan, math.nan)
    where = "under" if high < bar else "over" if low > bar else "not shown to be under"
    header = ("steps", "seeds", "FD gained per doubling, %", "bootstrap", "t")
    text = (
        f"Over its last interval the control gains {number(last.mean, 1)} % per doubling: {where} "
        f"the {bar:.0f} % asked of a finished control. While it is over, a variant may look faster "
        "only because everything is still falling."
    )
    return [
        Heading(3, "Is the control trained to its end?"),
        Table(header, tuple(rows)),
        Paragraph(text),
    ]


def steps_to_quality(group: Group) -> list[Block]:
    """Share of the control's steps that each variant needs to reach the control's final FD."""
    rows, verdicts, ratios = [], {}, []
    for variant in main_variants(group):
        try:
            speed = steps_ratio(group.curves(CONTROL), group.curves(variant), "fd")
        except ValueError:
            continue
        if variant != CONTROL:
            verdicts[variant] = _speed(speed)
            ratios.append(speed)
            rows.append(_speed_row(variant, speed, verdicts[variant]))
    if not rows:
        return []
    header = ("variant", "seeds", "reached in", "ratio", "bootstrap", "t", "verdict")
    title = Heading(3, "Steps to the control's final FD")
    text = _speed_text(group, verdicts, ratios)
    return [title, Table(header, tuple(rows)), Paragraph(text)]


def _speed(speed: StepsRatio) -> str:
    if speed.faster:
        return "faster"
    if len(speed.censored) == len(speed.by_seed):
        return "not reached"
    if speed.student is None:
        return "no interval"
    return "not faster" if speed.student[0] > min(1.0, speed.own) else "undecided"


def _speed_row(variant: str, speed: StepsRatio, verdict: str) -> tuple[str, ...]:
    count = len(speed.by_seed)
    mark = "at least " if speed.censored else "at most " if speed.early else ""
    return (
        code(variant),
        str(count),
        f"{count - len(speed.censored)} of {count}",
        mark + number(speed.ratio, 3),
        bounds(speed.bootstrap, 3),
        bounds(speed.student, 3),
        verdict,
    )


def _speed_text(group: Group, verdicts: dict[str, str], ratios: list[StepsRatio]) -> str:
    goal = [
        code(variant)
        for variant, speed in zip(verdicts, ratios, strict=True)
        if speed.faster and speed.ratio <= GOAL
    ]
    text = (
        f"{grouped(verdicts, _SPEEDS)}. Ratio {GOAL} or less with the whole t-interval below 1: "
        f"{', '.join(goal) or 'no variant'}. Geometric mean over seeds; log(FD) is taken as linear "
        "in log(steps) between checkpoints, along the best value so far. A seed that has "
        "not reached the value by its last checkpoint counts with that step and leaves the "
        "interval open above: nothing is extrapolated. Steps are counted, not "
        "time: what a step costs is not in this table."
    )
    own = min(speed.own for speed in ratios)
    if own < 1:
        text += (
            f" The control's FD is not monotone: by the same rule the control itself scores "
            f"{number(own, 3)}, so only a ratio below that is called faster."
        )
    if any(speed.early for speed in ratios):
        text += " `at most`: there before the first checkpoint in some seed, counted as there."
    return f"{text} {seeds_caveat(len(speed.by_seed) for speed in ratios)}".strip()
