# SPDX-License-Identifier: Apache-2.0
"""The figures that the README and the findings quote are those of the stored rows."""

from __future__ import annotations

import math
import re
from functools import cache
from pathlib import Path

import pytest

from experiments.analysis import Group, load_results
from experiments.statistics import estimate, steps_ratio

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results"
PAGES = [ROOT / "README.md", ROOT / "experiments" / "FINDINGS.md"]
#: What the columns of the table below the mark hold, for each data set in turn:
#: ``<!-- rows: STUDY, minus VARIANT, at STEP STEP -->``, or ``steps to VARIANT`` without steps;
#: ``pooled over VARIANT, at STEP STEP``: a column a step, for both data sets together.
MARK = re.compile(
    r"<!-- rows: ([\w-]+), (minus|steps to|pooled over) ([\w@=-]+)(?:, at ([\d ]+))? -->\n"
    r"((?:\|.*\n)+)"
)
DATASETS = {"transfer-emoji": ("images",), "depth": ("demo",), "deep-64": ("demo64",)}
BOTH = ("fashion", "demo")


@cache
def group(study: str, dataset: str) -> Group:
    return load_results([RESULTS / f"{study}.jsonl"]).group(study, dataset)


def signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}"


def seeds(count: int) -> str:
    """Nothing for three, which the pages say once for all."""
    return "" if count == 3 else ", 1 seed" if count == 1 else f", {count} seeds"


def difference(of: Group, variant: str, against: str, step: int) -> str:
    """``-0.13 [-0.36, +0.10], -6 %``: paired FD and its t-interval; the seeds where not three."""
    pairs = of.differences(variant, against, "fd", step)
    if not pairs:
        return ""
    found = estimate(list(pairs.values()))
    other = of.values(against, "fd", step)
    share = 100 * found.mean * len(pairs) / math.fsum(other[seed] for seed in pairs)
    interval = f" [{', '.join(map(signed, found.student))}]" if found.student else ""
    text = f"{signed(found.mean)}{interval}, {round(share):+d} %{seeds(len(pairs))}"
    return f"**{text}**" if found.sign else text


def pooled(study: str, variant: str, against: str, step: int) -> str:
    """``+4.7 % [+2.4, +6.9]``: geometric mean of the ratio of FDs, over the seeds of both."""
    logs = []
    for of in (group(study, name) for name in BOTH):
        mine, other = of.values(variant, "fd", step), of.values(against, "fd", step)
        logs += [math.log(mine[seed] / other[seed]) for seed in mine if seed in other]
    if not logs:
        return ""
    found = estimate(logs)
    percents = [f"{100 * math.expm1(log):+.1f}" for log in (found.mean, *found.student)]
    text = f"{percents[0]} % [{percents[1]}, {percents[2]}]"
    text += "" if len(logs) == 6 else f", {len(logs)} pairs"
    return f"**{text}**" if found.sign else text


def steps(of: Group, variant: str, against: str) -> str:
    """``0.88 [0.73, 1.07]``: the steps' ratio; ``at least`` where a seed never gets there."""
    control, mine = of.curves(against), of.curves(variant)
    end = max(map(max, control.values()))
    # A seed that was not trained so long says nothing about where it would have got.
    mine = {seed: curve for seed, curve in mine.items() if max(curve) == end}
    if not mine:
        return ""
    found = steps_ratio(control, mine)
    count = seeds(len(found.by_seed))
    if found.censored:
        return f"at least {found.ratio:.2f}{count}"
    if not found.student:
        return f"{found.ratio:.2f}{count}"
    low, high = found.student
    text = f"{found.ratio:.2f} [{low:.2f}, {high:.2f}]{count}"
    return f"**{text}**" if found.faster else text


def expected(match: re.Match[str], variant: str) -> list[str]:
    study, kind, against, at, _ = match.groups()
    groups = [group(study, name) for name in DATASETS.get(study, BOTH)]
    if kind == "steps to":
        return [steps(of, variant, against) for of in groups]
    if kind == "pooled over":
        return [pooled(study, variant, against, int(step)) for step in at.split()]
    return [difference(of, variant, against, int(step)) for of in groups for step in at.split()]


def tables() -> list[pytest.param]:
    found = [(page, match) for page in PAGES for match in MARK.finditer(page.read_text())]
    return [
        pytest.param(match, id=f"{page.stem}-{match[1]}-{n}")
        for n, (page, match) in enumerate(found)
    ]


def test_both_pages_have_tables():
    assert {table.id.split("-")[0] for table in tables()} == {page.stem for page in PAGES}


@pytest.mark.parametrize("match", tables())
def test_a_table_says_what_the_rows_say(match):
    lines = match[5].splitlines()[2:]
    assert lines
    wanted = []
    for line in lines:
        (variant,) = re.findall(r"`([\w@=-]+)`", line)
        label = line.split("|")[1].strip()
        wanted.append(f"| {label} | " + " | ".join(expected(match, variant)) + " |")
    assert lines == wanted
