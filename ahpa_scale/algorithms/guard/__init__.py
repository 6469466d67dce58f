# SPDX-License-Identifier: Apache-2.0
"""Guards against bad batches, loss spikes and a job's time limit: see README.md."""

from __future__ import annotations

from .finite import nonfinite_flag
from .guard import Guard
from .spikes import Spikes

__all__ = ["Guard", "Spikes", "nonfinite_flag"]
