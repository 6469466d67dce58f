# SPDX-License-Identifier: Apache-2.0
"""Result rows of a small study with known effects, for the tests of the analysis."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

STEPS = (100, 200, 400)
LEVELS = ["encoder.down_blocks.0.resnets.0", "encoder.mid_block"]
# Logarithm of FD against the control's.
EFFECTS = {"none": 0.0, "none-again": 0.0, "gap": -0.3, "placebo": 0.02, "repa": -0.4}


def run_row(variant: str, seed: int, step: int, fd: float, **changes) -> dict:
    slope = {"gap": 0.4, "repa": 0.0}.get(variant)
    router = None
    if slope is not None:
        coarse = [0.5 + slope * (t / 9 - 0.5) + 0.01 * seed for t in range(10)]
        weight_GT = [[1 - w for w in coarse], coarse]
        router = {"levels": LEVELS, "weight_GT": weight_GT, "loss_GT": [[-0.5] * 10] * 2}
    row = {
        "kind": "run",
        "study": "main",
        "dataset": "demo",
        "variant": variant,
        "seed": seed,
        "step": step,
        "images": step * 64,
        "digest": f"{variant}-{seed}",
        "build": "b0",
        "metrics": {"fd": fd, "accuracy": 0.9 - 0.01 * fd, "flow": 0.4 + 0.001 * fd},
        "curves": {"flow_t": [0.1 * t + 0.001 * fd for t in range(10)], "router": router},
        "seconds": 1.0,
    }
    return {**row, **changes}


def rows() -> list[dict]:
    """Three seeds of five variants with known effects, a sweep, floors, and maps of two seeds."""
    noise = random.Random(0)
    made = []
    for variant, effect in {**EFFECTS, "none@lr=1e-3": 0.5, "none@lr=4e-3": -0.05}.items():
        for seed in range(3):
            for step in STEPS:
                fd = 10 * (100 / step) ** 0.6 * math.exp(effect + noise.gauss(0, 0.01))
                made.append(run_row(variant, seed, step, fd))
    for name, fd in (("real", 0.1), ("reconstruction", 1.5)):
        made.append({"kind": "floor", "dataset": "demo", "name": name, "metrics": {"fd": fd}})
    for seed in range(2):
        r2_LDT = [[[0.9, 0.5, None], [0.95, 0.6, 0.1]], [[0.8, 0.2, 0.0], [0.7, 0.3, -0.1]]]
        found = {"levels": LEVELS, "blocks": [1, 2], "bins": 3, "r2_LDT": r2_LDT}
        cell = {"dataset": "demo", "variant": "none", "seed": seed, "step": 400}
        made.append({"kind": "map", **cell, "map": found})
    return made


def write(folder: Path, content: list[dict], name: str = "main.jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in content))
    return path
