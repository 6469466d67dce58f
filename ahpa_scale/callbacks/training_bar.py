# SPDX-License-Identifier: Apache-2.0
"""A progress bar on a terminal, and a plain line now and then in a log file."""

from __future__ import annotations

import math
import sys
import time
from typing import Any, TextIO

from composer.core import State, TimeUnit
from composer.loggers import Logger, LoggerDestination
from tqdm import tqdm

from ahpa_scale import console
from ahpa_scale.callbacks.common import writes_files
from ahpa_scale.callbacks.speed import Speed
from ahpa_scale.errors import UserError

_LOSS = "loss/train/total"


class TrainingBar(LoggerDestination):
    """Shows batch n of N, loss, images per second and time left, on rank 0.

    The loss is the value that Composer has already brought to the host for its loggers. Where lines
    are JSON there is no bar.

    Args:
        seconds: time between two lines where the stream is not a terminal.
        stream: where to write; None is the standard error stream.
    """

    def __init__(self, seconds: float = 30.0, stream: TextIO | None = None) -> None:
        if not seconds >= 0:
            raise UserError(f"seconds between progress lines is {seconds}: give 0 or more")
        self.seconds = seconds
        self.stream = stream
        self._loss: float | None = None
        self._bar: tqdm[Any] | None = None
        self._last_line = 0.0
        self._speed = Speed()

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Note the loss as it comes by."""
        del step
        if _LOSS in metrics:
            self._loss = float(metrics[_LOSS])

    def fit_start(self, state: State, logger: Logger) -> None:
        del logger
        self._speed.start(state)
        self._last_line = time.monotonic()
        out = self.stream or sys.stderr
        if writes_files() and out.isatty() and not console.is_json():
            self._bar = tqdm(
                total=batches_in_total(state),
                initial=state.timestamp.batch.value,
                file=out,
                dynamic_ncols=True,
                mininterval=0.5,
                bar_format="{percentage:5.1f}% |{bar}| {n_fmt}/{total_fmt} batches {postfix}",
            )

    def batch_end(self, state: State, logger: Logger) -> None:
        del logger
        self._speed.note(state)
        if not writes_files():
            return
        if self._bar is not None:
            self._show_bar(self._bar, state)
        elif time.monotonic() - self._last_line >= self.seconds:
            self._print_line(state)

    def fit_end(self, state: State, logger: Logger) -> None:
        if not writes_files():
            return
        if self._bar is None:
            self._print_line(state)
        self.close(state, logger)

    def close(self, state: State, logger: Logger) -> None:
        del state, logger
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _show_bar(self, bar: tqdm[Any], state: State) -> None:
        bar.total = batches_in_total(state)
        bar.set_postfix_str(self._words(state), refresh=False)
        bar.update(state.timestamp.batch.value - bar.n)

    def _print_line(self, state: State) -> None:
        done, total = state.timestamp.batch.value, batches_in_total(state)
        share = "" if total is None else f"/{total} ({100 * done / total:.1f} %)"
        line = f"batch {done}{share} {self._words(state)}"
        speed = self._speed.images_per_second
        fields = {"batch": done, "of": total, "loss": self._loss, "images_per_second": speed}
        console.say(line.rstrip(), stream=self.stream, fields=fields)
        self._last_line = time.monotonic()

    def _words(self, state: State) -> str:
        """Loss, speed and time left, as far as they are known."""
        words = [] if self._loss is None else [f"loss {self._loss:.4f}"]
        speed = self._speed.images_per_second
        if speed is not None:
            words.append(f"{speed:.1f} images/s")
        total = batches_in_total(state)
        if total is not None:
            left = self._speed.seconds_for(max(0, total - state.timestamp.batch.value))
            if left is not None:
                words.append(f"left {tqdm.format_interval(left)}")
        return ", ".join(words)


def batches_in_total(state: State) -> int | None:
    """The number of batches at which training will stop, or None while it can't be known.

    For a length in samples it follows from the samples per batch so far.
    """
    limit, now = state.max_duration, state.timestamp
    if limit is None:
        return None
    if limit.unit == TimeUnit.BATCH:
        return int(limit.value)
    if limit.unit == TimeUnit.EPOCH and state.dataloader_len is not None:
        return int(limit.value) * int(state.dataloader_len)
    if limit.unit == TimeUnit.SAMPLE and now.sample.value > 0:
        return math.ceil(int(limit.value) * now.batch.value / now.sample.value)
    return None
