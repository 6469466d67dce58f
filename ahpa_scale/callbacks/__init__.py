# SPDX-License-Identifier: Apache-2.0
"""What a run shows and writes while it trains. Imported on first use, to start fast."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .engine_line import EngineLine as EngineLine
    from .heartbeat import Heartbeat as Heartbeat
    from .heldout_loss import HeldOutLoss as HeldOutLoss
    from .metrics_file import MetricsFile as MetricsFile
    from .prometheus import Prometheus as Prometheus
    from .router_figure import RouterFigure as RouterFigure
    from .sample_distance import SampleDistance as SampleDistance
    from .sample_grid import SampleGrid as SampleGrid
    from .summary import RunSummary as RunSummary
    from .tensorboard import TensorBoard as TensorBoard
    from .training_bar import TrainingBar as TrainingBar

_HOME = {
    "EngineLine": ".engine_line",
    "Heartbeat": ".heartbeat",
    "HeldOutLoss": ".heldout_loss",
    "MetricsFile": ".metrics_file",
    "TrainingBar": ".training_bar",
    "Prometheus": ".prometheus",
    "RouterFigure": ".router_figure",
    "RunSummary": ".summary",
    "SampleDistance": ".sample_distance",
    "SampleGrid": ".sample_grid",
    "TensorBoard": ".tensorboard",
}

__all__ = [
    "EngineLine",
    "Heartbeat",
    "HeldOutLoss",
    "MetricsFile",
    "Prometheus",
    "RouterFigure",
    "RunSummary",
    "SampleDistance",
    "SampleGrid",
    "TensorBoard",
    "TrainingBar",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name], __name__), name)
