# SPDX-License-Identifier: Apache-2.0
"""Serves a run's numbers over HTTP: /metrics for Prometheus, and /healthz.

Training only writes plain attributes of a `Board`. All other work is done on request, on separate
threads. Neither torch nor Composer is imported, so that a process answers before they are loaded.
"""

from ahpa_scale.exporter.board import Board, Newest, Saved
from ahpa_scale.exporter.collector import BoardCollector
from ahpa_scale.exporter.server import health, serving

__all__ = ["Board", "BoardCollector", "Newest", "Saved", "health", "serving"]
