# SPDX-License-Identifier: Apache-2.0
"""The study's judges: small networks, trained once per data set, that score generated pictures.
Names load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.judges.classifier import Classifier, apply_in_batches, to_pictures
    from experiments.judges.demo_scores import (
        DemoReference,
        build_demo_reference,
        load_demo_reference,
    )
    from experiments.judges.metrics import (
        FeatureStatistics,
        class_accuracy,
        frechet_distance,
        kernel_distance,
    )
    from experiments.judges.reference import Reference, build_reference, load_reference
    from experiments.judges.training import train_classifier

# Some need Diffusers, which costs seconds to import; most need only torch.
_HOMES = {
    "Classifier": "classifier",
    "DemoReference": "demo_scores",
    "FeatureStatistics": "metrics",
    "Reference": "reference",
    "apply_in_batches": "classifier",
    "build_demo_reference": "demo_scores",
    "build_reference": "reference",
    "class_accuracy": "metrics",
    "frechet_distance": "metrics",
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
    "frechet_distance",
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
