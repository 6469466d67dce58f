# SPDX-License-Identifier: Apache-2.0
"""The numbers of a run over HTTP: /metrics as Prometheus reads them, and /healthz.

Training writes plain attributes of a `Board`; all else is done when somebody asks, on a thread of
its own. Neither torch nor Composer is imported, so that a process answers before they are there.
"""

from ahpa_scale.exporter.board import Board, Newest, Saved
from ahpa_scale.exporter.collector import BoardCollector
from ahpa_scale.exporter.server import health, serving

__all__ = ["Board", "BoardCollector", "Newest", "Saved", "health", "serving"]
