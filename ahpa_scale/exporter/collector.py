# SPDX-License-Identifier: Apache-2.0
"""A board and a pulse -> Prometheus metrics, made on request."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ahpa_scale.exporter.board import Board
from ahpa_scale.watch import Pulse

#: Gauges of the newest batch by name, with their help.
_GAUGES = {
    "batch": "Batches trained by the run.",
    "images": "Images trained on by the run.",
    "planned_batches": "Batches at which the run will stop.",
    "learning_rate": "Learning rate of the newest batch.",
    "gradient_norm": "Backbone's gradient norm before clipping, as last logged.",
    "images_per_second": "Images per second of all ranks, 50 batches.",
    "mfu": "Model FLOPs of all ranks over the devices' peak, 0 to 1.",
}


class BoardCollector(Collector):
    """All metrics have the prefix ``ahpa_``. Unknown ones are left out.

    Args:
        board: numbers of the training loop.
        pulse: pulse of the main thread.
    """

    def __init__(self, board: Board, pulse: Pulse) -> None:
        self.board, self.pulse = board, pulse

    def describe(self) -> Iterator[Metric]:
        """Empty. Otherwise the registry would collect once to learn the names."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """All metric families, with the board's current values."""
        board, now = self.board, time.monotonic()
        yield InfoMetricFamily("ahpa_run", "What runs.", value=dict(board.info))
        newest = board.newest
        for name, text in _GAUGES.items():
            value = getattr(newest, name)
            if value is not None:
                yield GaugeMetricFamily(f"ahpa_{name}", text, value=value)
        yield _labelled("ahpa_loss", "Newest training loss by part.", "part", newest.losses)
        # Copied in one step, because the main thread writes to it meanwhile.
        yield _labelled(
            "ahpa_logged", "Newest value of whatever else is logged.", "name", board.logged.copy()
        )
        yield from self._counters(now)
        yield from self._moments(now)

    def _counters(self, now: float) -> Iterator[Metric]:
        board = self.board
        yield CounterMetricFamily(
            "ahpa_data_wait_seconds",
            "Seconds until all ranks had their next batch.",
            value=board.data_wait(now),
        )
        yield CounterMetricFamily(
            "ahpa_loop_seconds", "Seconds of the training loop.", value=board.loop_time(now)
        )
        yield CounterMetricFamily(
            "ahpa_nonfinite_batches",
            "Batches whose loss or gradient was not finite.",
            value=board.nonfinite_batches,
        )
        yield CounterMetricFamily(
            "ahpa_watch_dropped_datagrams",
            "Datagrams to the watch that were not of this job, or not new.",
            value=self.pulse.dropped,
        )

    def _moments(self, now: float) -> Iterator[Metric]:
        if self.board.started_at is not None:
            yield GaugeMetricFamily(
                "ahpa_start_timestamp_seconds",
                "When training started in this process.",
                self.board.started_at,
            )
        saved = self.board.saved()
        if saved is not None:
            yield GaugeMetricFamily(
                "ahpa_checkpoint_batch", "Batches trained at the newest checkpoint.", saved.batch
            )
            yield GaugeMetricFamily(
                "ahpa_checkpoint_timestamp_seconds", "When the newest checkpoint came.", saved.at
            )
        if self.pulse.count:
            yield GaugeMetricFamily(
                "ahpa_last_event_timestamp_seconds",
                "When the main thread last passed an event of the loop.",
                value=time.time() - (now - self.pulse.marked),
            )


def _labelled(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
