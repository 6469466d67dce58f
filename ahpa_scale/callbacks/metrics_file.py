# SPDX-License-Identifier: Apache-2.0
"""`metrics.jsonl`: one JSON object per logged batch, without gaps or duplicates over resumes."""

from __future__ import annotations

import json
import logging
import math
import numbers
import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from composer.core import Event, State
from composer.loggers import Logger, LoggerDestination

from ahpa_scale import storage, typed_json
from ahpa_scale.algorithms.timing import Every
from ahpa_scale.callbacks.common import router_summary, writes_files
from ahpa_scale.errors import UserError
from ahpa_scale.log_files import append_line, going_on_without
from ahpa_scale.run_files import METRICS_FILE
from ahpa_scale.storage.disk import new_file_beside

LOSS_KEYS = ("loss/train/total", "loss/train/flow", "loss/train/alignment")
# A row has its own keys for the clocks and for the router's record.
_NOT_WRITTEN = ("time/", "trainer/", "router/")
#: Most bytes of a row; a longer line is no row.
_LONGEST = 64 << 20
_log = logging.getLogger(__name__)


class MetricsFile(LoggerDestination):
    """Writes what is logged during training, on rank 0.

    A row has ``batch`` and ``num_images`` (both counted after the batch), ``epoch``, ``seconds`` of
    training, the ``lr`` and the losses of the batch (null where there is none), the newest value of
    anything else logged since the last row and, every ``router_interval``, ``router`` (the summary
    of the alignment: levels, weight_GT, loss_GT, count_T). Numbers that are not finite are null and
    named in ``nonfinite``. Rows of later batches are removed when training starts or resumes. If
    the disk takes no row, that row is lost, with one warning.

    Args:
        output_dir: local folder.
        interval: time string between rows.
        router_interval: time string between router records; each joins the next row.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        interval: str = "1ba",
        router_interval: str = "100ba",
    ) -> None:
        self.path = Path(output_dir) / METRICS_FILE
        self.row_due = Every(interval)
        self.router_due = Every(router_interval, "router_interval")
        self._writing = False
        self._values: dict[str, Any] = {}
        self._router: dict[str, Any] | None = None
        self._lr: float | None = None

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Keep values until their row is written; ``step`` is known from the event."""
        del step
        self._values.update((k, v) for k, v in metrics.items() if not k.startswith(_NOT_WRITTEN))

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        """Write at the end of a batch or epoch, then as any callback."""
        if self._writing:
            if self.router_due(event, state):
                self._router = router_summary(state.model)
            if self.row_due(event, state):
                self._write_row(state)
        super().run_event(event, state, logger)

    def fit_start(self, state: State, logger: Logger) -> None:
        del logger
        self._values.clear()
        if not writes_files():
            return
        if state.evaluators:
            _log.warning(
                "%s gives Composer's evaluations no rows of their own: leave eval_dataloader out, "
                "and run ahpa-scale evaluate on the checkpoints",
                self.path,
            )
        with going_on_without(self.path):
            drop_rows_after(self.path, state.timestamp.batch.value)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()
        self._writing = True

    def batch_start(self, state: State, logger: Logger) -> None:
        del logger
        # The scheduler steps before the end of the batch, so this is the rate that the batch uses.
        self._lr = float(state.optimizers[0].param_groups[0]["lr"])
        for key in [key for key in self._values if key.startswith("loss/")]:
            del self._values[key]

    def close(self, state: State, logger: Logger) -> None:
        del state, logger
        self._writing = False

    def _write_row(self, state: State) -> None:
        time = state.timestamp
        row = {
            "batch": time.batch.value,
            "num_images": time.sample.value,
            "epoch": time.epoch.value,
            "seconds": round(time.total_wct.total_seconds(), 3),
            "lr": self._lr,
            **dict.fromkeys(LOSS_KEYS),
            **self._values,
        }
        if self._router is not None:
            row["router"] = self._router
        append_line(self.path, encode_row(row))
        self._values.clear()
        self._router = None


def encode_row(row: dict[str, Any]) -> bytes:
    """One line of strict JSON: no NaN, no infinity, no value that JSON can't hold."""
    nonfinite: list[str] = []
    clean = {}
    for key, value in row.items():
        if _writable(value):
            clean[key] = _strict(value, key, nonfinite)
    if nonfinite:
        clean["nonfinite"] = list(dict.fromkeys(nonfinite))
    return json.dumps(clean, allow_nan=False).encode() + b"\n"


def _writable(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.numel() == 1
    return value is None or isinstance(value, str | dict | list | numbers.Real)


def _strict(value: Any, key: str, nonfinite: list[str]) -> Any:
    if isinstance(value, dict):
        return {name: _strict(part, key, nonfinite) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(part, key, nonfinite) for part in value]
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    number = float(value)
    if math.isfinite(number):
        return number
    nonfinite.append(key)
    return None


def drop_rows_after(path: Path, batch: int) -> None:
    """Remove rows of later batches, and a line torn by a kill, in one atomic move. Other lines
    that are no rows go too, with a warning.
    """
    if not path.exists():
        return
    descriptor, kept = new_file_beside(path)
    strange: UserError | None = None
    try:
        with os.fdopen(descriptor, "wb") as target, path.open("rb") as source:
            for number, line in enumerate(iter(partial(source.readline, _LONGEST), b""), start=1):
                try:
                    if _batch_of(line, f"{path}, line {number}") <= batch:
                        target.write(line)
                except UserError as error:
                    strange = strange or error
            whole = target.tell() == source.tell()
        if not whole:
            storage.put_file(kept, path)
    finally:
        kept.unlink(missing_ok=True)
    if strange is not None:
        _log.warning("%s; it is left out, and so is any other line of the kind", strange)


def _batch_of(line: bytes, place: str) -> float:
    if not line.endswith(b"\n") and len(line) < _LONGEST:
        return math.inf  # torn
    row = typed_json.parse(line, place)
    if not isinstance(row, dict) or type(row.get("batch")) is not int:
        raise UserError(f"{place} is no row")
    return int(row["batch"])
