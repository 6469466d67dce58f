# SPDX-License-Identifier: Apache-2.0
"""Sweeps: variants named ``family@key=value``; each family's key has one table and one figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.analysis import CONTROL, Group
from experiments.report.document import Block, Heading, Image, Paragraph, Table, slug
from experiments.report.figures import SweepLine, draw_sweep
from experiments.report.words import (
    NAMES,
    bounds,
    code,
    decimals,
    listed,
    number,
    plural,
    spread,
)
from experiments.statistics import Estimate, estimate, steps_ratio


@dataclass(frozen=True)
class Sweep:
    """One key of one family.

    Attributes:
        family: the name before the last ``@``.
        key: what is swept.
        members: (value as written, variant): first numbers, sorted, then words.
    """

    family: str
    key: str
    members: tuple[tuple[str, str], ...]


def sweeps(group: Group) -> list[Sweep]:
    """All sweeps of a group, sorted by key, then by family, the control's family first."""
    members: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for variant in group.variants():
        family, at, setting = variant.rpartition("@")
        key, equals, value = setting.partition("=")
        if at and equals:
            members.setdefault((key, family), []).append((value, variant))
    order = sorted(members, key=lambda pair: (pair[0], pair[1] != CONTROL, pair[1]))
    return [
        Sweep(family, key, tuple(sorted(members[key, family], key=_value_order)))
        for key, family in order
    ]


def _value_order(member: tuple[str, str]) -> tuple[int, float, str]:
    value = as_number(member[0])
    return (1, 0.0, member[0]) if value is None else (0, value, member[0])


def as_number(text: str) -> float | None:
    """The text as a number, or None."""
    try:
        return float(text)
    except ValueError:
        return None


def sweep_sections(group: Group) -> list[Block]:
    """Table, words and figure of every sweep."""
    every = sweeps(group)
    if not every:
        return []
    blocks: list[Block] = [Heading(3, "Sweeps")]
    for sweep in every:
        blocks += _section(group, sweep)
    for key in sorted({sweep.key for sweep in every}):
        image = _figure(group, [sweep for sweep in every if sweep.key == key], key)
        blocks += [image] if image else []
    return blocks


def common_step(group: Group, sweep: Sweep) -> int | None:
    """The last checkpoint that every member has."""
    steps = [set(group.steps(variant)) for _, variant in sweep.members]
    shared = set.intersection(*steps)
    return max(shared) if shared else None


def _section(group: Group, sweep: Sweep) -> list[Block]:
    title = Heading(4, f"{code(sweep.family)} over {code(sweep.key)}")
    step = common_step(group, sweep)
    if step is None:
        return [title, Paragraph("Its members have no checkpoint in common.")]
    metrics = [m for m in group.metrics() if group.values(sweep.members[0][1], m, step)]
    members = list(sweep.members)
    if sweep.family in group.variants() and group.values(sweep.family, "fd", step):
        members.append(("as in the study", sweep.family))
    places = {
        m: decimals(x for _, v in members for x in group.values(v, m, step).values())
        for m in metrics
    }
    header = (sweep.key, "seeds", *(NAMES[m] for m in metrics), *_extra_header(sweep))
    rows = []
    for value, variant in members:
        seeds = [s for s in group.seeds(variant) if group.run(variant, s, step)]
        cells = [_mean(group, variant, m, step, places[m]) for m in metrics]
        extra = _extra(group, sweep, value, variant, step, places.get("fd", 3))
        rows.append((value, listed(seeds), *cells, *extra))
    text = f"At step {step}, the last that all members have. {_best(group, sweep, step)}"
    return [title, _without_empty(header, rows), Paragraph(text)]


def _without_empty(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    """A table without the columns that are empty in every row."""
    kept = [n for n in range(len(header)) if any(row[n] != "-" for row in rows)]
    return Table(tuple(header[n] for n in kept), tuple(tuple(row[n] for n in kept) for row in rows))


def _extra_header(sweep: Sweep) -> tuple[str, str, str]:
    same = code(f"{CONTROL}@{sweep.key}=")
    return "FD minus `none`, t", f"FD minus {same} the same, t", "steps ratio to `none`, t"


def _mean(group: Group, variant: str, metric: str, step: int, places: int) -> str:
    values = list(group.values(variant, metric, step).values())
    return spread(estimate(values), places) if values else "-"


def _extra(
    group: Group, sweep: Sweep, value: str, variant: str, step: int, places: int
) -> tuple[str, str, str]:
    plain = _difference(group, variant, CONTROL, step)
    same = _difference(group, variant, f"{CONTROL}@{sweep.key}={value}", step)
    try:
        speed = steps_ratio(group.curves(CONTROL), group.curves(variant), "fd")
    except ValueError:
        speed = None
    if speed is None or variant == CONTROL:
        return _shown(plain, places), _shown(same, places), "-"
    shown = ("at least " if speed.censored else "") + number(speed.ratio, 3)
    interval = f" {bounds(speed.student, 3)}" if speed.student else ""
    return _shown(plain, places), _shown(same, places), shown + interval


def _difference(group: Group, variant: str, against: str, step: int) -> Estimate | None:
    pairs = group.differences(variant, against, "fd", step) if variant != against else {}
    return estimate(list(pairs.values())) if pairs else None


def _shown(delta: Estimate | None, places: int) -> str:
    if delta is None:
        return "-"
    mean = number(delta.mean, places, sign=True)
    return mean if delta.student is None else f"{mean} {bounds(delta.student, places, sign=True)}"


def _best(group: Group, sweep: Sweep, step: int) -> str:
    """Which value has the lowest mean FD, whether it is at the edge, whether its lead is clear."""
    values = {v: group.values(variant, "fd", step) for v, variant in sweep.members}
    shared = sorted(set.intersection(*(set(by_seed) for by_seed in values.values())))
    if len(values) < 2 or not shared:
        return "There are no two values with a seed in common, so none is named the best."
    means = {v: estimate([by_seed[s] for s in shared]).mean for v, by_seed in values.items()}
    means = {value: mean for value, mean in means.items() if math.isfinite(mean)}
    if len(means) < 2:
        return "All but one of the values diverged."
    first, second, *_ = sorted(means, key=lambda value: (means[value], value))
    variants = dict(sweep.members)
    text = f"Over the seeds that all share ({listed(shared)}) the lowest mean FD is at {first}"
    if as_number(first) is not None:
        numbers = [value for value, _ in sweep.members if as_number(value) is not None]
        edge = first in (numbers[0], numbers[-1])
        text += ", at the edge of the sweep: the best may lie outside" if edge else ", inside it"
    lead = _difference(group, variants[first], variants[second], step)
    if lead is None or lead.sign is None:
        return f"{text}. A single seed does not tell it from the next best, {second}."
    apart = "differs from" if lead.sign else "is not told apart from"
    return (
        f"{text}. It {apart} the next best, {second}, by the paired t-interval "
        f"{bounds(lead.student, decimals(means.values()), sign=True)} over "
        f"{plural(lead.count, 'seed')}; picking the lowest flatters it a little."
    )


def _figure(group: Group, members: list[Sweep], key: str) -> Image | None:
    lines = []
    for sweep in members:
        step = common_step(group, sweep)
        if step is None:
            continue
        points = [
            (value, list(group.values(variant, "fd", step).values()))
            for value, variant in sweep.members
        ]
        if any(values for _, values in points):
            lines.append(SweepLine(sweep.family, tuple(points)))
    if not lines:
        return None
    caption = (
        f"{group.title}: FD over {key} at the steps of the tables above; small dots are seeds, "
        "large marks their means."
    )
    name = slug(f"sweep {group.study} {group.dataset} {key}")
    return Image(name, draw_sweep(lines, key), caption)
