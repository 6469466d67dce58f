# SPDX-License-Identifier: Apache-2.0
"""The routers: how spread their weights are, and the sign of the schedule over noise.

Legend: G levels from fine to coarse, T t-bins; t = 0 is data, t = 1 is noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.analysis import Group, Run
from experiments.report.areas import RouterPanel, draw_routers, short_level
from experiments.report.document import Block, Heading, Image, Paragraph, Table, slug
from experiments.report.words import bounds, code, codes, listed, number, plural, seeds_caveat
from experiments.statistics import Estimate, estimate

COLLAPSED = 0.9
_SIGNS = {1: "coarse at high noise", -1: "coarse at low noise", 0: "undecided", None: "no interval"}


def router_sections(group: Group) -> list[Block]:
    """Entropy and weights of every seed, the slope of the coarse level's weight, and a figure."""
    runs = _last_runs(group)
    if not runs:
        return []
    header = ("variant", "seed", "step", "entropy", "mean weight of each level", "coarse level")
    rows, collapsed = [], []
    slopes: dict[str, list[float]] = {}
    for run in runs:
        row, slope, largest = _row(run)
        rows.append((*row, number(slope, 3, sign=True)))
        slopes.setdefault(run.variant, []).append(slope)
        if largest >= COLLAPSED:
            collapsed.append(f"{run.variant} seed {run.seed}")
    text = (
        "Entropy is the mean over the t-bins, 1 for uniform weights and 0 for a single level. "
        f"One level has {COLLAPSED} of the weight or more at every noise (collapsed): "
        f"{codes(collapsed)}. "
        "The slope is that of the straight line through the coarse level's weight against t."
    )
    return [
        Heading(3, "Routers"),
        Table((*header, "slope over t"), tuple(rows)),
        Paragraph(text.replace("no variant", "no run")),
        *_slopes(slopes),
        _figure(group, runs),
    ]


def _last_runs(group: Group) -> list[Run]:
    """Each run at its last checkpoint with router weights; after a release there are none."""
    last = {}
    for run in group.runs:
        if _tells(run):
            last[run.variant, run.seed] = run
    return [last[cell] for cell in sorted(last)]


def _tells(run: Run) -> bool:
    """Whether the run has a router of several levels, with pictures in two or more t-bins."""
    router = run.router
    return router is not None and len(router["levels"]) > 1 and len(weights(router)[0]) > 1


def coarse_level(levels: Sequence[str]) -> int:
    """The last VAE level, which is the coarsest; without VAE levels, the last level."""
    of_vae = [n for n, level in enumerate(levels) if level.startswith("encoder.")]
    return of_vae[-1] if of_vae else len(levels) - 1


def weights(router: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Centres ``[T]`` of the t-bins that saw pictures, and the levels' weights there ``[G, T]``."""
    weight_GT = np.asarray(router["weight_GT"], dtype=np.float64)
    centre_T = (np.arange(weight_GT.shape[1]) + 0.5) / weight_GT.shape[1]
    seen_T = np.isfinite(weight_GT).all(axis=0)
    return centre_T[seen_T], weight_GT[:, seen_T]


def _row(run: Run) -> tuple[tuple[str, ...], float, float]:
    assert run.router is not None
    levels = run.router["levels"]
    centre_T, weight_GT = weights(run.router)
    share_GT = np.clip(weight_GT / weight_GT.sum(axis=0), 1e-12, 1)
    entropy = float((-share_GT * np.log(share_GT)).sum(axis=0).mean() / math.log(len(levels)))
    coarse = coarse_level(levels)
    # Constant weights must give a slope of exactly 0, not a rounding error.
    slope = round(float(np.polyfit(centre_T, weight_GT[coarse], 1)[0]), 6)
    means = listed(
        f"{short_level(level)} {mean:.2f}"
        for level, mean in zip(levels, weight_GT.mean(axis=1), strict=True)
    )
    name = short_level(levels[coarse])
    return (
        (code(run.variant), str(run.seed), str(run.step), f"{entropy:.3f}", means, name),
        slope,
        float(weight_GT.min(axis=1).max()),
    )


def _slopes(slopes: dict[str, list[float]]) -> list[Block]:
    estimates = {variant: estimate(values) for variant, values in sorted(slopes.items())}
    rows = tuple(
        (
            code(variant),
            str(slope.count),
            number(slope.mean, 3, sign=True),
            bounds(slope.bootstrap, 3, sign=True),
            bounds(slope.student, 3, sign=True),
            _SIGNS[slope.sign],
        )
        for variant, slope in estimates.items()
    )
    header = ("variant", "seeds", "slope of the coarse weight", "bootstrap", "t", "schedule")
    caveat = seeds_caveat(slope.count for slope in estimates.values())
    return [Table(header, rows), Paragraph(f"{_slope_text(estimates)} {caveat}".strip())]


def _slope_text(estimates: dict[str, Estimate]) -> str:
    up = [variant for variant, slope in estimates.items() if slope.sign == 1]
    down = [variant for variant, slope in estimates.items() if slope.sign == -1]
    return (
        f"Coarse at high noise with the whole t-interval above nought: {codes(up)}; the reverse: "
        f"{codes(down)}. For a schedule set by hand the sign is what was set, not a finding, and "
        f"for a learnt one it says what the router does, not that this helps. "
        f"{plural(len(estimates), 'variant')} with a router."
    )


def _figure(group: Group, runs: Sequence[Run]) -> Image:
    panels = []
    for run in runs:
        assert run.router is not None
        centre_T, weight_GT = weights(run.router)
        title = f"{run.variant}, seed {run.seed}"
        panels.append(RouterPanel(title, run.router["levels"], centre_T, weight_GT))
    # With as many columns as seeds, each variant has its own row.
    counts = {sum(run.variant == name for run in runs) for name in {run.variant for run in runs}}
    columns = counts.pop() if len(counts) == 1 else 1
    columns = columns if 1 < columns < 6 else 4
    caption = f"{group.title}: weight of each level over noise, at each run's last checkpoint."
    return Image(
        slug(f"router {group.study} {group.dataset}"), draw_routers(panels, columns), caption
    )
