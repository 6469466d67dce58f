# SPDX-License-Identifier: Apache-2.0
"""Puts the sections together and writes the files."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from ahpa_scale import storage
from ahpa_scale.config.errors import ConfigError
from experiments.analysis import CONTROL, Group, load_results
from experiments.grids import grid_name, real_grid_name
from experiments.report.comparison import contents, floors, main_tables, main_variants
from experiments.report.document import (
    Block,
    Heading,
    Image,
    Paragraph,
    slug,
    to_html,
    to_markdown,
)
from experiments.report.figures import draw_curves, draw_flow_differences
from experiments.report.maps import map_sections
from experiments.report.routing import router_sections
from experiments.report.sweeps import sweep_sections
from experiments.report.testbed import control_gain, noise_floor, sensitivity, steps_to_quality
from experiments.report.verdicts import load_claims, verdict_sections
from experiments.report.words import code, plural

_PNG = b"\x89PNG\r\n\x1a\n"
_LINK = re.compile(r"\]\(figures/([^()/]+\.png)\)")
_INTRODUCTION = (
    "Made from the stored result rows alone, byte for byte the same on the same rows. Every "
    "variant of a seed shares the initial weights, the order of the data, the noise levels and "
    "the noise, so differences are taken seed by seed (paired). Lower is better for FD, KID, flow "
    "loss, layout error and texture distance; higher for accuracy and shape accuracy. FD is "
    "measured in features of a classifier of that data set, so it compares rows of this report "
    "only and no published numbers."
)
_INTERVALS = (
    "Two 95 % intervals are given. The paired bootstrap resamples the seeds 10,000 times; with a "
    "few seeds it is too narrow, as it can only resample the differences it has (of three, it is "
    "their whole range and no more). The t-interval allows for the few seeds, but takes the "
    "differences as roughly normal. Every verdict here rests on the t-interval; a single seed has "
    "no interval and decides nothing. No interval is corrected for how many there are."
)


def report(paths: Sequence[str | Path], out: str | Path) -> Path:
    """Write ``REPORT.md``, ``report.html`` and ``figures/*.png`` into a folder.

    Figures of an earlier report in the folder are removed if the new one does not show them;
    nothing else there is touched.

    Args:
        paths: result files (JSONL), and YAML files whose ``verdicts`` name the hypotheses.
        out: the folder; it is made if it is not there.

    Returns:
        The path of ``REPORT.md``.

    Raises:
        ConfigError: a file or row is broken, is there twice, contradicts another or is missing.
    """
    every = sorted({Path(path) for path in paths})
    yamls = [path for path in every if path.suffix in (".yaml", ".yml")]
    rows = [path for path in every if path not in yamls]
    results = load_results(rows)
    claims = [claim for path in yamls for claim in load_claims(path)]
    blocks: list[Block] = [
        Heading(1, "Report of the study"),
        Paragraph(_INTRODUCTION),
        Paragraph(_INTERVALS),
    ]
    blocks += contents(results)
    blocks += verdict_sections(results, claims)
    for group in results.groups:
        blocks += _group(group, sorted({path.parent / "samples" for path in rows}))
    return _write(_distinct(blocks), Path(out))


def _group(group: Group, folders: Sequence[Path]) -> list[Block]:
    return [
        Heading(2, f"Study {group.study}, data set {group.dataset}"),
        *sensitivity(group),
        *noise_floor(group),
        *floors(group),
        *control_gain(group),
        *steps_to_quality(group),
        *_curves(group),
        *main_tables(group),
        *_flow(group),
        *sweep_sections(group),
        *router_sections(group),
        *map_sections(group),
        *_samples(group, folders),
    ]


def _curves(group: Group) -> list[Block]:
    def fd(variant: str) -> dict[int, dict[int, float]]:
        curves = {
            seed: {step: m["fd"] for step, m in curve.items() if m.get("fd", 0) > 0}
            for seed, curve in group.curves(variant).items()
        }
        return {seed: curve for seed, curve in curves.items() if curve}

    variants = {variant: fd(variant) for variant in main_variants(group) if variant != CONTROL}
    shown = {variant: curves for variant, curves in variants.items() if curves}
    if not shown:
        return []
    caption = (
        f"{group.title}: FD over steps. Thick: geometric mean over seeds, thin: each seed; grey: "
        "`none`, dotted: its mean at the end."
    )
    name = slug(f"curves {group.study} {group.dataset}")
    return [Image(name, draw_curves(fd(CONTROL), shown, "FD"), caption)]


def _flow(group: Group) -> list[Block]:
    differences: dict[str, dict[int, list[float]]] = {}
    for variant in main_variants(group):
        for seed in group.seeds(variant):
            for step in reversed(group.steps()):
                run, control = group.run(variant, seed, step), group.run(CONTROL, seed, step)
                if variant == CONTROL or run is None or control is None:
                    continue
                both = (*run.flow_T, *control.flow_T)
                same = 0 < len(run.flow_T) == len(control.flow_T)
                if same and all(map(math.isfinite, both)):
                    pairs = zip(run.flow_T, control.flow_T, strict=True)
                    differences.setdefault(variant, {})[seed] = [a - b for a, b in pairs]
                    break
    if not differences:
        return []
    caption = (
        f"{group.title}: held-out flow loss of each variant minus that of `none`, by noise level, "
        "at the last checkpoint that both have. Below zero fits the flow better, which does not "
        "mean better samples. Thick: mean over seeds, thin: each seed."
    )
    name = slug(f"flow {group.study} {group.dataset}")
    return [
        Heading(3, "Flow loss by noise level"),
        Image(name, draw_flow_differences(differences), caption),
    ]


def _samples(group: Group, folders: Sequence[Path]) -> list[Block]:
    places = [folder / group.study for folder in folders]
    blocks: list[Block] = []
    if real := _grid(places, real_grid_name(group.dataset)):
        blocks.append(_shown(group, "real", real, "real pictures"))
    for variant in group.variants():
        for step in reversed(group.steps(variant)):
            if newest := _grid(places, grid_name(group.dataset, variant, step)):
                words = f"samples of {code(variant)} after {plural(step, 'step')}"
                blocks.append(_shown(group, variant, newest, words))
                break
    return [Heading(3, "Samples"), *blocks] if blocks else []


def _grid(places: Sequence[Path], name: str) -> Path | None:
    return next((place / name for place in places if (place / name).is_file()), None)


def _shown(group: Group, what: str, path: Path, words: str) -> Image:
    png = path.read_bytes()
    if not png.startswith(_PNG):
        raise ConfigError(str(path), "", "is not a PNG file")
    name = slug(f"samples {group.study} {group.dataset} {what}")
    return Image(name, png, f"{group.title}: {words}.")


def _distinct(blocks: Sequence[Block]) -> list[Block]:
    """Add a number to figures whose names give the same file name."""
    taken: set[str] = set()
    result: list[Block] = []
    for block in blocks:
        if isinstance(block, Image):
            name, number = block.name, 1
            while name in taken:
                number += 1
                name = f"{block.name}-{number}"
            taken.add(name)
            block = Image(name, block.png, block.caption)
        result.append(block)
    return result


def _write(blocks: Sequence[Block], out: Path) -> Path:
    page = out / "REPORT.md"
    before = set(_LINK.findall(page.read_text("utf-8"))) if page.is_file() else set()
    images = {f"{block.name}.png": block.png for block in blocks if isinstance(block, Image)}
    for name, png in images.items():
        storage.write_bytes(out / "figures" / name, png)
    storage.write_text(out / "report.html", to_html(blocks))
    storage.write_text(page, to_markdown(blocks))
    for name in before - set(images):
        storage.remove(out / "figures" / name)
    return page
