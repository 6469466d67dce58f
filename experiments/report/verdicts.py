# SPDX-License-Identifier: Apache-2.0
"""Hypotheses: comparisons named in a YAML before anyone sees the numbers, and their results.

```yaml
verdicts:
  - hypothesis: H2
    claim: coarse at high noise beats its reverse
    variant: coarse
    against: reverse
    metric: fd
    expect: lower       # the sign of variant minus against: lower or higher
    study: main         # left out: every study that has both variants
    dataset: fashion    # left out: every data set that has both variants
    step: 3200          # left out: the last checkpoint with three seeds, or with as many as any has
```
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from ahpa_scale.config.errors import ConfigError, choices
from experiments.analysis import BETTER, Group, Results
from experiments.report.document import Block, Heading, Paragraph, Table
from experiments.report.words import (
    NAMES,
    bounds,
    code,
    codes,
    decimals,
    number,
    seeds_caveat,
)
from experiments.statistics import Estimate, estimate

_SIGNS = {"lower": -1, "higher": 1}


@dataclass(frozen=True)
class Claim:
    """One comparison: the variant minus the other, in one metric, with the sign expected."""

    hypothesis: str
    claim: str
    variant: str
    against: str
    metric: str
    expect: str
    study: str | None = None
    dataset: str | None = None
    step: int | None = None


@dataclass(frozen=True)
class Named:
    """A claim, its place in the file, and the variants that the file declares: a study's own file
    may name comparisons that have not run yet.
    """

    where: str
    claim: Claim
    declared: frozenset[str] = frozenset()

    def missing(self, known: Sequence[str]) -> list[str]:
        """The claim's variants that are declared, but not among `known`."""
        both = (self.claim.variant, self.claim.against)
        return [name for name in both if name in self.declared and name not in known]


def load_claims(path: Path) -> list[Named]:
    """The claims of a YAML's ``verdicts`` list; [] without that key.

    Raises:
        ConfigError: the file cannot be read, or a claim has an unknown, missing or wrong key.
    """
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(str(path), "", f"cannot read: {error}") from error
    claims = content.get("verdicts", []) if isinstance(content, dict) else None
    if not isinstance(claims, list):
        raise ConfigError(str(path), "verdicts", "must be a list of comparisons")
    declared = frozenset(content.get("variants") or ())
    places = [f"{path}: verdicts[{number}]" for number in range(len(claims))]
    return [
        Named(place, _claim(entry, place), declared)
        for place, entry in zip(places, claims, strict=True)
    ]


def _claim(entry: Any, where: str) -> Claim:
    if not isinstance(entry, dict):
        raise ConfigError(where, "", "must be a mapping of keys")
    known = [field.name for field in fields(Claim)]
    for key in entry:
        if key not in known:
            raise ConfigError(where, str(key), f"unknown key; {choices(str(key), known)}")
    for field in fields(Claim):
        kind = int if field.name == "step" else str
        if field.name not in entry:
            if field.default is MISSING:
                raise ConfigError(where, field.name, "missing")
        elif not isinstance(entry[field.name], kind) or isinstance(entry[field.name], bool):
            word = "a whole number" if kind is int else "text"
            raise ConfigError(where, field.name, f"must be {word}, not {entry[field.name]!r}")
    for key, allowed in (("expect", _SIGNS), ("metric", BETTER)):
        if entry[key] not in allowed:
            problem = f"{entry[key]!r} is not known; {choices(entry[key], allowed)}"
            raise ConfigError(where, key, problem)
    return Claim(**entry)


def verdict_sections(results: Results, claims: Sequence[Named]) -> list[Block]:
    """One section per hypothesis: the comparisons on each data set, and the verdict.

    Raises:
        ConfigError: a claim names a study, data set or variant that the results do not have.
    """
    if not claims:
        return []
    blocks: list[Block] = [Heading(2, "Hypotheses")]
    known = sorted({variant for group in results.groups for variant in group.variants()})
    for hypothesis in sorted({named.claim.hypothesis for named in claims}):
        rows: list[tuple[str, ...]] = []
        outcomes: list[tuple[str, Estimate | None]] = []
        for named in claims:
            claim = named.claim
            if claim.hypothesis != hypothesis:
                continue
            if missing := named.missing(known):
                outcomes.append((_verdict(None, claim), None))
                rows.append(_untested(claim, missing))
                continue
            for group in _groups(results, claim, named.where):
                step, delta = _test(group, claim)
                outcomes.append((_verdict(delta, claim), delta))
                rows.append(_row(group, claim, step, delta))
        header = ("claim", "study, data set", "comparison", "step", "seeds", "difference")
        table = Table((*header, "bootstrap", "t", "verdict"), tuple(rows))
        blocks += [Heading(3, hypothesis), table, Paragraph(_words(hypothesis, outcomes))]
    return blocks


def _groups(results: Results, claim: Claim, where: str) -> list[Group]:
    groups = list(results.groups)
    for key in ("study", "dataset"):
        wanted = getattr(claim, key)
        names = sorted({getattr(group, key) for group in groups})
        if wanted is not None and wanted not in names:
            problem = f"the results have no {wanted!r}; {choices(wanted, names)}"
            raise ConfigError(where, key, problem)
        groups = [group for group in groups if wanted in (None, getattr(group, key))]
    for key in ("variant", "against"):
        wanted = getattr(claim, key)
        names = sorted({variant for group in groups for variant in group.variants()})
        if wanted not in names:
            problem = f"the results have no {wanted!r}; {choices(wanted, names)}"
            raise ConfigError(where, key, problem)
    both = [g for g in groups if {claim.variant, claim.against} <= set(g.variants())]
    if not both:
        raise ConfigError(where, "against", "no study has both variants on one data set")
    return both


def _test(group: Group, claim: Claim) -> tuple[int | None, Estimate | None]:
    step = claim.step or group.last_compared(claim.variant, claim.against, claim.metric)
    if step is None:
        return None, None
    pairs = group.differences(claim.variant, claim.against, claim.metric, step)
    return step, estimate(list(pairs.values())) if pairs else None


def _verdict(delta: Estimate | None, claim: Claim) -> str:
    if delta is None:
        return "not tested"
    if delta.sign in (None, 0):
        return "undecided"
    return "holds" if delta.sign == _SIGNS[claim.expect] else "does not hold"


def _untested(claim: Claim, missing: Sequence[str]) -> tuple[str, ...]:
    group = f"no rows of {codes(missing)} yet"
    return (claim.claim, group, _comparison(claim), "-", "0", "-", "-", "-", "**not tested**")


def _comparison(claim: Claim) -> str:
    return (
        f"{code(claim.variant)} minus {code(claim.against)}, {NAMES[claim.metric]}, {claim.expect}"
    )


def _row(group: Group, claim: Claim, step: int | None, delta: Estimate | None) -> tuple[str, ...]:
    head = (claim.claim, group.title, _comparison(claim), "-" if step is None else str(step))
    verdict = f"**{_verdict(delta, claim)}**"
    if delta is None:
        return (*head, "0", "-", "-", "-", verdict)
    places = decimals([delta.mean, *(delta.student or ())])
    mean = number(delta.mean, places, sign=True)
    bootstrap = bounds(delta.bootstrap, places, sign=True)
    student = bounds(delta.student, places, sign=True)
    return (*head, str(delta.count), mean, bootstrap, student, verdict)


def _words(hypothesis: str, outcomes: Sequence[tuple[str, Estimate | None]]) -> str:
    verdicts = [verdict for verdict, _ in outcomes]
    if set(verdicts) == {"holds"}:
        text = "**holds** in every comparison named for it"
    elif set(verdicts) == {"does not hold"}:
        text = "**does not hold**: every comparison has the other sign"
    elif "holds" in verdicts and "does not hold" in verdicts:
        text = "**mixed**: some comparisons hold and some have the other sign"
    else:
        open_ones = sum(verdict in ("undecided", "not tested") for verdict in verdicts)
        text = f"**undecided**: {open_ones} of {len(verdicts)} comparisons decide nothing"
    caveat = seeds_caveat([delta.count for _, delta in outcomes if delta])
    return (
        f"{hypothesis} {text}. A comparison holds when its whole t-interval lies on the expected "
        f"side of zero, does not hold when it lies on the other, and is undecided between. {caveat}"
    ).strip()
