# SPDX-License-Identifier: Apache-2.0
"""No alignment against AHPA on your own labelled pictures (class = sub-folder).

The last line printed is ``ratio R [LOW, HIGH]``: the steps that AHPA needs to reach the control's
final Frechet distance, over the control's own steps, with its 95 % interval over the seeds. Before
it come the distances, their difference at the end, and where a report with curves and pictures
lies.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

if __name__ == "__main__":
    # If this runs as a file, Python looks for packages beside it, not in the repository.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ahpa_scale import storage
from ahpa_scale.account import settle_account
from ahpa_scale.commands.options import local_arguments
from ahpa_scale.config.errors import exit_on_user_error
from ahpa_scale.errors import UserError
from experiments.analysis import Group, load_results
from experiments.recipes import VaeRecipe
from experiments.report import report
from experiments.runner import Places, run_study
from experiments.statistics import StepsRatio, estimate, steps_ratio
from experiments.study import Study, load_study

TEMPLATE = Path(__file__).with_suffix(".yaml")
CONTROL, VARIANT = "none", "ahpa"
#: Judged points of a run, in eighths of the run.
EIGHTHS = (1, 2, 4, 6, 8)
METRICS = {"fd": "Frechet distance", "kid": "KID"}
#: Steps of autoencoder and judge per minute of the budget, at most their own defaults.
STEPS_A_MINUTE = 60
JUDGE_STEPS = 2400
PROBE_STEPS = 16
#: Least share of the budget for training, however long the data set took.
LEAST_SHARE = 1 / 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; a user's mistake is one line on stderr and exit status 2."""
    settle_account()
    given = _parser().parse_args(arguments)
    with exit_on_user_error():
        local_arguments(given)
        _check(given)
        places = Places(given.work.absolute(), given.work.absolute() / "results")
        begun = time.monotonic()
        path = given.work / f"{_name(given)}.yaml"
        if not path.exists():
            steps = given.steps or _affordable(given, places, begun)
            storage.write_text(path, yaml.safe_dump(_study(given, steps), sort_keys=False))
        study = load_study(path)
        if run_study(study, places, jobs=given.jobs):
            return 1
        _report(study, places)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True, help="folder of class sub-folders")
    parser.add_argument("--size", type=int, default=32, help="side of the pictures, in pixels")
    parser.add_argument("--vae", help="diffusers folder or 'demo' [default: train a small one]")
    parser.add_argument("--minutes", type=float, help="choose the steps to take about so long")
    parser.add_argument("--steps", type=int, help="batches of a run [default: 3200, or --minutes]")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant")
    parser.add_argument("--samples", type=int, help="pictures per judgement [default: 2000]")
    parser.add_argument(
        "--judge-steps", type=int, help=f"training of the judge [default: {JUDGE_STEPS} or fewer]"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="worker processes")
    parser.add_argument("--work", type=Path, default=Path("runs/transfer"), help="working folder")
    return parser


def _check(given: argparse.Namespace) -> None:
    if not given.images.is_dir():
        raise UserError(f"--images: no folder {given.images}")
    classes = [path for path in given.images.iterdir() if path.is_dir()]
    if len(classes) < 2:
        raise UserError(f"--images: {given.images} needs two sub-folders or more, one per class")
    if given.minutes is not None and given.steps is not None:
        raise UserError("give --minutes or --steps, not both")
    for name, least in (
        ("seeds", 1),
        ("jobs", 1),
        ("steps", EIGHTHS[-1]),
        ("minutes", 1e-9),
        ("judge_steps", 1),
    ):
        value = getattr(given, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} must be at least {least:g}, not {value:g}")
    if given.minutes is None and given.steps is None:
        given.steps = 3200


def _name(given: argparse.Namespace) -> str:
    """One study per set of arguments, so that the same command goes on where it stopped."""
    told = {key: str(value) for key, value in vars(given).items() if key not in ("work", "jobs")}
    told["images"] = str(given.images.resolve())
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]
    return f"transfer-{digest}"


def _study(given: argparse.Namespace, steps: int) -> dict[str, Any]:
    """The template with the pictures, the seeds and the checkpoints in it."""
    eighth = steps // EIGHTHS[-1]
    # The router is read at every checkpoint, so its interval must divide them.
    eighth = eighth // 100 * 100 if eighth >= 100 else eighth
    study: dict[str, Any] = yaml.safe_load(TEMPLATE.read_text("utf-8"))
    study["name"] = _name(given)
    study["base"] = str((TEMPLATE.parent / study["base"]).resolve())
    study["seeds"] = list(range(given.seeds))
    study["checkpoints"] = [part * eighth for part in EIGHTHS]
    if given.samples is not None:
        study["samples"]["count"] = given.samples
    study["datasets"] = {"images": _recipe(given)}
    study["datasets"]["images"]["overrides"] = {
        "logging.router_interval": f"{min(100, eighth)}ba",
        "optimizer.warmup": f"{min(100, eighth)}ba",
    }
    return study


def _recipe(given: argparse.Namespace) -> dict[str, Any]:
    budget = None if given.minutes is None else max(1, int(STEPS_A_MINUTE * given.minutes))
    vae = given.vae or VaeRecipe().model_dump(mode="json")
    recipe = {
        "recipe": "folder",
        "folder": str(given.images.resolve()),
        "size": given.size,
        "vae": vae,
        "scaling": "channel",
        "teacher_steps": 0,
    }
    if budget is not None and given.vae is None:
        vae["steps"] = min(vae["steps"], budget)
    recipe["judge_steps"] = given.judge_steps or min(JUDGE_STEPS, budget or JUDGE_STEPS)
    return recipe


def _affordable(given: argparse.Namespace, places: Places, begun: float) -> int:
    """Steps of a run that fit into the minutes, from a short probe of both variants.

    Building the data set counts against the minutes, but training gets at least a third of them.
    """
    content = _study(given, PROBE_STEPS)
    content |= {"name": f"{content['name']}-probe", "seeds": [0], "checkpoints": [PROBE_STEPS]}
    content["datasets"]["images"]["overrides"]["logging.router_interval"] = f"{PROBE_STEPS}ba"
    path = places.work / f"{content['name']}.yaml"
    storage.write_text(path, yaml.safe_dump(content, sort_keys=False))
    probe = load_study(path)
    if run_study(probe, places, jobs=given.jobs, build_only=True):
        raise UserError("building the data set failed")
    trained = time.monotonic()
    if run_study(probe, places, jobs=given.jobs):
        raise UserError("the probe of the speed failed")
    rounds = -(-2 // min(given.jobs, 2))
    wall = (time.monotonic() - trained) / rounds
    seconds = max(row["seconds"] for row in _runs(probe, places))
    budget = 60 * given.minutes
    left = max(budget * LEAST_SHARE, budget - (time.monotonic() - begun))
    # Besides training, a cell costs its start and its judgements; the probe had one of each.
    return steps_within(
        left, 2 * given.seeds, given.jobs, seconds / PROBE_STEPS, max(0.0, wall - seconds)
    )


def steps_within(left: float, cells: int, jobs: int, step: float, judgement: float) -> int:
    """Steps of a run with which all cells end in time; at least one per eighth.

    Args:
        left: seconds that are left.
        cells: runs.
        jobs: runs at a time.
        step: seconds a step takes.
        judgement: seconds a judged checkpoint takes.
    """
    rounds = -(-cells // jobs)
    training = left / rounds - len(EIGHTHS) * judgement
    return max(EIGHTHS[-1], int(training / step))


def _runs(study: Study, places: Places) -> list[Mapping[str, Any]]:
    from experiments.rows import ResultFile

    return [row for row in ResultFile(places.rows(study)).read() if row["kind"] == "run"]


def _report(study: Study, places: Places) -> None:
    group = load_results([places.rows(study)]).group(study.name, "images")
    curves = {name: group.curves(name) for name in (CONTROL, VARIANT)}
    print(f"Frechet distance, seeds {', '.join(map(str, study.seeds))}:")
    for name, by_seed in curves.items():
        for step in study.checkpoints:
            values = " ".join(f"{by_seed[seed][step]['fd']:.4g}" for seed in study.seeds)
            print(f"  {name:6} step {step:6}: {values}")
    for metric, name in METRICS.items():
        print(f"{name} at the end, {VARIANT} - {CONTROL}: {_difference(group, metric)}")
    page = report([places.rows(study)], places.work / f"report-{study.name}")
    print(f"curves, router and pictures: {page.with_name('report.html')}")
    ratio = steps_ratio(curves[CONTROL], curves[VARIANT])
    print(f"{VARIANT}: {_words(ratio)}")
    print(ratio.line())


def _difference(group: Group, metric: str) -> str:
    """Mean over the seeds, paired, its share of the control's and its 95 % t-interval."""
    last = group.steps()[-1]
    mean = estimate(list(group.differences(VARIANT, CONTROL, metric, last).values()))
    control = estimate(list(group.values(CONTROL, metric, last).values()))
    share = f"{mean.mean:+.3g} ({mean.mean / control.mean:+.0%})"
    if mean.student is None:
        return f"{share}, no interval"
    low, high = mean.student
    return f"{share} [{low:+.3g}, {high:+.3g}]"


def _words(ratio: StepsRatio) -> str:
    if ratio.censored:
        seeds = ", ".join(map(str, ratio.censored))
        return f"did not reach the control's final distance with seed {seeds}; the ratio is a bound"
    if ratio.faster:
        return "reaches the control's final distance in fewer steps"
    return "no gain that these seeds can tell from chance"


if __name__ == "__main__":
    sys.exit(main())
