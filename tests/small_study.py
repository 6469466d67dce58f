# SPDX-License-Identifier: Apache-2.0
"""A study of a few seconds for the tests: drawn pictures, the embedded VAE, four steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
BASE = ROOT / "experiments" / "studies" / "base-narrow.yaml"


def content(**changes: Any) -> dict[str, Any]:
    """The study as plain data, with top-level keys replaced."""
    demo = {
        "recipe": "demo",
        "preset": "easy",
        "size": 16,
        "vae": "demo",
        "count": 64,
        "test_count": 64,
        "heldout": 64,
        "judge_steps": 1,
        "factor_steps": 1,
        "factor_pictures": 64,
        "overrides": {
            "logging.router_interval": "1ba",
            "global_train_batch_size": 16,
            "optimizer.warmup": "0ba",
            "model.depth": 2,
            "model.width": 32,
        },
    }
    study = {
        "name": "tiny",
        "base": str(BASE),
        "seeds": [0, 1],
        "checkpoints": [2, 4],
        "datasets": {"demo": demo},
        "variants": {
            "none": {},
            "ahpa": {"alignment.kind": "ahpa", "alignment.head.kind": "linear"},
            "repa": {"alignment.kind": "repa", "alignment.head.kind": "linear"},
        },
        "samples": {"count": 64, "steps": 1, "method": "euler"},
    }
    return {**study, **changes}


def write(folder: Path, study: dict[str, Any]) -> Path:
    """The study as a file."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    return path
