# SPDX-License-Identifier: Apache-2.0
"""The stored cells, the floors, and every variant against the control at every checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence

from experiments.analysis import CONTROL, Group, Results
from experiments.report.document import Block, Bullets, Heading, Paragraph, Table
from experiments.report.words import (
    NAMES,
    bounds,
    code,
    decimals,
    grouped,
    judged,
    listed,
    number,
    plural,
    seeds_caveat,
    spread,
)
from experiments.statistics import Estimate, estimate

_ORDER = ("better", "worse", "undecided", "no interval", "diverged")


def main_variants(group: Group) -> list[str]:
    """All variants but the members of sweeps."""
    return [variant for variant in group.variants() if "@" not in variant]


def contents(results: Results) -> list[Block]:
    """The cells that the results hold, and the cells of each study's full grid that are missing."""
    blocks: list[Block] = [Heading(2, "What is in the results")]
    for group in results.groups:
        grid = f"{plural(len(group.variants()), 'variant')}, seeds {listed(group.seeds())}"
        extras = [
            f"{plural(len(group.floors), 'floor')} and {plural(len(group.maps), 'map')}",
            f"{plural(len(group.runs), 'row')} of runs",
        ]
        text = f"**{group.title}**: {grid}, checkpoints {listed(group.steps())}; "
        text += " and ".join(reversed(extras)) + "." + _builds(group)
        blocks += [Paragraph(text), *_cells(group)]
    return blocks


def _builds(group: Group) -> str:
    """Names the builds if there are several, because then seeds differ in more than their seed."""
    builds = {run.seed: run.build for run in group.runs}
    if len(set(builds.values())) < 2:
        return ""
    each = (f"seed {seed} by `{build}`" for seed, build in sorted(builds.items()))
    return (
        " Its autoencoder and judges were built more than once, and every seed was judged by one "
        f"build: {listed(each)}."
    )


def _cells(group: Group) -> list[Block]:
    if not group.runs:
        return []
    rows = []
    for variant in group.variants():
        gaps = _missing(group, variant)
        seeds, steps = listed(group.seeds(variant)), listed(group.steps(variant))
        rows.append((code(variant), seeds, steps, "; ".join(gaps) or "-"))
    full = sum(row[-1] == "-" for row in rows)
    text = (
        f"{full} of {plural(len(rows), 'variant')} have every seed and checkpoint that any variant "
        "of this study has here. What is not there may be unfinished or was never asked for: the "
        "rows cannot tell. Every number below uses only the seeds that both sides have."
    )
    header = ("variant", "seeds", "checkpoints", "not there")
    return [Table(header, tuple(rows)), Paragraph(text)]


def _missing(group: Group, variant: str) -> list[str]:
    gaps: dict[tuple[int, ...], list[int]] = {}
    for seed in group.seeds():
        steps = tuple(s for s in group.steps() if group.run(variant, seed, s) is None)
        if steps:
            gaps.setdefault(steps, []).append(seed)
    return [
        f"seed {listed(seeds)}"
        + ("" if len(steps) == len(group.steps()) else f" at {listed(steps)}")
        for steps, seeds in gaps.items()
    ]


def floors(group: Group) -> list[Block]:
    """Scores of real pictures and of the VAE's reconstructions: what no model can beat."""
    if not group.floors:
        return []
    present = {metric for floor in group.floors for metric in floor.metrics}
    metrics = [metric for metric in NAMES if metric in present]
    places = {m: decimals(f.metrics.get(m, 0.0) for f in group.floors) for m in metrics}
    rows = [
        (floor.name, *(_value(floor.metrics.get(m), places[m]) for m in metrics))
        for floor in group.floors
    ]
    text = "No run can be expected to pass the `real` row by more than the scores' own noise."
    best = [f for f in group.floors if f.name == "reconstruction" and "fd" in f.metrics]
    if best and group.runs:
        step = group.steps()[-1]
        values = group.values(CONTROL, "fd", step)
        floor = best[0].metrics["fd"]
        if values and floor > 0:
            share = estimate(list(values.values())).mean / floor
            text += (
                f" The VAE's reconstructions alone score FD {number(floor, places['fd'])}; the "
                f"control at step {step} is at {share:.1f} times that."
            )
    header = ("floor", *(NAMES[metric] for metric in metrics))
    return [Heading(3, "Floors"), Table(header, tuple(rows)), Paragraph(text)]


def main_tables(group: Group) -> list[Block]:
    """One table per checkpoint, the last first: values, and paired differences to the control."""
    variants = [v for v in main_variants(group) if v in group.variants()]
    if not variants:
        return []
    blocks: list[Block] = [Heading(3, "Main table"), Paragraph(_legend(group))]
    for step in reversed(group.steps()):
        present = [v for v in variants if any(group.run(v, s, step) for s in group.seeds(v))]
        if present:
            blocks += _checkpoint(group, step, present)
    return blocks


def _legend(group: Group) -> str:
    if CONTROL not in group.variants():
        return f"There is no {code(CONTROL)} here, so these are values without differences."
    return (
        "Each cell: mean ± deviation over the seeds; then the mean difference to `none`, paired "
        "by seed, with what the t-interval makes of it; then the 95 % intervals of that "
        "difference, b by paired bootstrap (10,000 resamples of the seeds) and t by Student's t."
    )


def _checkpoint(group: Group, step: int, variants: Sequence[str]) -> list[Block]:
    metrics = [m for m in group.metrics() if any(group.values(v, m, step) for v in variants)]
    verdicts: dict[str, dict[str, str]] = {metric: {} for metric in metrics}
    counts: list[int] = []
    columns = []
    for metric in metrics:
        every = [x for v in variants for x in group.values(v, metric, step).values()]
        places = decimals(every)
        column = []
        for variant in variants:
            delta = difference(group, variant, metric, step)
            if delta is not None:
                verdicts[metric][variant] = judged(delta, metric)
                counts.append(delta.count)
            column.append(_cell(group, variant, metric, step, places, delta))
        columns.append(column)
    rows = [
        (code(variant), _seeds(group, variant, step), *(column[n] for column in columns))
        for n, variant in enumerate(variants)
    ]
    header = ("variant", "seeds", *(NAMES[metric] for metric in metrics))
    blocks: list[Block] = [Heading(4, f"Step {step}"), Table(header, tuple(rows))]
    if not counts:
        return blocks
    said = [f"{NAMES[m]}: {grouped(v, _ORDER)}." for m, v in verdicts.items() if v]
    return [*blocks, Bullets(tuple(said)), Paragraph(_caution(verdicts, counts))]


def difference(group: Group, variant: str, metric: str, step: int) -> Estimate | None:
    """The variant's paired difference to the control; None for the control and without pairs."""
    if variant == CONTROL:
        return None
    pairs = group.differences(variant, CONTROL, metric, step)
    return estimate(list(pairs.values())) if pairs else None


def _cell(
    group: Group, variant: str, metric: str, step: int, places: int, delta: Estimate | None
) -> str:
    values = group.values(variant, metric, step)
    if not values:
        return "-"
    lines = [spread(estimate(list(values.values())), places)]
    if delta is not None and math.isfinite(delta.mean):
        verdict = judged(delta, metric)
        strong = f"**{verdict}**" if verdict in ("better", "worse") else verdict
        pairs = "" if delta.count == len(values) else f", {plural(delta.count, 'pair')}"
        lines.append(f"{number(delta.mean, places, sign=True)} {strong}{pairs}")
        if delta.student is not None:
            lines.append(f"b {bounds(delta.bootstrap, places, sign=True)}")
            lines.append(f"t {bounds(delta.student, places, sign=True)}")
    return "\n".join(lines)


def _seeds(group: Group, variant: str, step: int) -> str:
    return listed(s for s in group.seeds(variant) if group.run(variant, s, step))


def _caution(verdicts: dict[str, dict[str, str]], counts: Sequence[int]) -> str:
    decided = ("better", "worse", "undecided")
    tests = sum(
        verdict in decided for by_variant in verdicts.values() for verdict in by_variant.values()
    )
    text = "Undecided means that the t-interval holds zero: no effect is shown, nor its absence."
    if tests:
        text += (
            f" The table makes {plural(tests, 'comparison')}, each at 95 % for itself: about "
            f"{0.05 * tests:.1f} would look decided if nothing had any effect."
        )
    if "flow" in verdicts:
        text += " Flow loss is no proxy for the quality of samples under alignment."
    return f"{text} {seeds_caveat(counts)}".strip()


def _value(value: float | None, places: int) -> str:
    return "-" if value is None else number(value, places)
