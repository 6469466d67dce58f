# SPDX-License-Identifier: Apache-2.0
"""Judging generated pictures and held-out losses at small scale. Names load on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ahpa_scale.evaluation.classifier import Classifier, apply_in_batches, to_pictures
    from ahpa_scale.evaluation.demo_scores import (
        DemoReference,
        build_demo_reference,
        load_demo_reference,
    )
    from ahpa_scale.evaluation.heldout import heldout_flow
    from ahpa_scale.evaluation.metrics import (
        FeatureStatistics,
        class_accuracy,
        frechet_distance,
        kernel_distance,
    )
    from ahpa_scale.evaluation.reference import Reference, build_reference, load_reference
    from ahpa_scale.evaluation.samples import draw_samples
    from ahpa_scale.evaluation.training import train_classifier

# Diffusers and Composer cost seconds to import; judging pictures needs neither.
_HOMES = {
    "Classifier": "classifier",
    "DemoReference": "demo_scores",
    "FeatureStatistics": "metrics",
    "Reference": "reference",
    "apply_in_batches": "classifier",
    "build_demo_reference": "demo_scores",
    "build_reference": "reference",
    "class_accuracy": "metrics",
    "draw_samples": "samples",
    "frechet_distance": "metrics",
    "heldout_flow": "heldout",
    "kernel_distance": "metrics",
    "load_demo_reference": "demo_scores",
    "load_reference": "reference",
    "to_pictures": "classifier",
    "train_classifier": "training",
}

__all__ = [
    "Classifier",
    "DemoReference",
    "FeatureStatistics",
    "Reference",
    "apply_in_batches",
    "build_demo_reference",
    "build_reference",
    "class_accuracy",
    "draw_samples",
    "frechet_distance",
    "heldout_flow",
    "kernel_distance",
    "load_demo_reference",
    "load_reference",
    "to_pictures",
    "train_classifier",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
