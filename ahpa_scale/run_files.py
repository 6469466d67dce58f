# SPDX-License-Identifier: Apache-2.0
"""Names of the files in a run's output folder. Standard library only."""

from __future__ import annotations

#: The resolved configuration.
CONFIG_FILE = "config.yaml"
#: A row of numbers per logged batch.
METRICS_FILE = "metrics.jsonl"
#: When the run's processes started and ended, and why.
HISTORY_FILE = "history.jsonl"
#: Bad batches and loss spikes.
GUARD_FILE = "guard.jsonl"
#: The router's last weights, drawn.
ROUTER_FILE = "router.png"
#: Folder of sample grids.
SAMPLES_FOLDER = "samples"
#: A row per evaluated checkpoint; in the folder that `ahpa-scale evaluate` writes to.
EVALUATION_FILE = "evaluation.jsonl"


def sample_name(batch: int) -> str:
    """The file name of the sample grid after `batch` batches."""
    return f"step-{batch:08d}.png"
