# SPDX-License-Identifier: Apache-2.0
"""The schema of a run: nested, frozen, strict. `Config` is the root; each section has its own
class.
"""

from ahpa_scale.config.schema.alignment import Alignment, Head, Router
from ahpa_scale.config.schema.fields import parse_duration, parse_time
from ahpa_scale.config.schema.guard import Guard
from ahpa_scale.config.schema.model import Data, DataStream, Flow, Model, Vae
from ahpa_scale.config.schema.parallelism import Parallelism
from ahpa_scale.config.schema.run import Config
from ahpa_scale.config.schema.training import (
    Checkpoint,
    Ema,
    HeldOut,
    Logging,
    Optimizer,
    Sampling,
)
from ahpa_scale.config.schema.watch import Watch

__all__ = [
    "Alignment",
    "Checkpoint",
    "Config",
    "Data",
    "DataStream",
    "Ema",
    "Flow",
    "Guard",
    "Head",
    "HeldOut",
    "Logging",
    "Model",
    "Optimizer",
    "Parallelism",
    "Router",
    "Sampling",
    "Vae",
    "Watch",
    "parse_duration",
    "parse_time",
]
