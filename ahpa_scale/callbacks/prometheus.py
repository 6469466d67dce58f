# SPDX-License-Identifier: Apache-2.0
"""Writes a run's numbers to the board that Prometheus reads."""

from __future__ import annotations

import numbers
import time
from typing import Any

from composer.callbacks.speed_monitor import get_gpu_flops_available
from composer.core import State
from composer.loggers import Logger, LoggerDestination
from composer.utils import dist

from ahpa_scale.callbacks.speed import Speed
from ahpa_scale.callbacks.training_bar import batches_in_total
from ahpa_scale.checkpoint.saver import Saver
from ahpa_scale.exporter import Board, Saved

_LOSS = "loss/train/"
_NORM = "grad_norm/backbone"
_NONFINITE = "guard/nonfinite"
# The board has the clocks under other names.
_NOT_SHOWN = ("time/", "trainer/")


class Prometheus(LoggerDestination):
    """Notes logged host numbers: no sync, no collective, a few attributes a batch.

    The wait for data is host time, from the request to the loader until every rank has its batch.

    Args:
        board: the target.
        flops_per_image: of training, as `training_flops` counts them.
        peak: FLOPs per second of one device at this precision; None: Composer's number for the
            device, and no MFU where it has none.
    """

    def __init__(self, board: Board, flops_per_image: int, peak: float | None = None) -> None:
        self.board, self.flops_per_image, self.peak = board, flops_per_image, peak
        self._speed = Speed()
        self._peak_of_all = 0.0
        # Composer logs the parts of a batch one by one: they are shown together at its end.
        self._next: dict[str, Any] = {}
        self._losses: dict[str, float] = {}

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Sorts by name."""
        del step
        board = self.board
        for name, value in metrics.items():
            if name.startswith(_NOT_SHOWN) or not isinstance(value, numbers.Real):
                continue
            if name.startswith(_LOSS):
                self._losses[name.removeprefix(_LOSS)] = float(value)
            elif name == _NORM:
                self._next["gradient_norm"] = float(value)
            elif name == _NONFINITE:
                board.nonfinite_batches += 1
            else:
                board.logged[name] = float(value)

    def fit_start(self, state: State, logger: Logger) -> None:
        del logger
        board = self.board
        board.begun, board.ended, board.started_at = time.monotonic(), None, time.time()
        peak = self.peak or float(get_gpu_flops_available(state))
        self._peak_of_all = peak * dist.get_world_size()
        self._speed.start(state)
        self._show(state)
        saver = next(
            (callback for callback in state.callbacks if isinstance(callback, Saver)), None
        )
        if saver is not None:
            board.saved = lambda: _saved(saver)

    def before_dataloader(self, state: State, logger: Logger) -> None:
        del state, logger
        self.board.wait = (self.board.wait[0], time.monotonic())

    def after_dataloader(self, state: State, logger: Logger) -> None:
        del state, logger
        self._has_waited()

    def batch_start(self, state: State, logger: Logger) -> None:
        del logger
        # The scheduler steps before the end of the batch, so this is the rate that the batch uses.
        self._next["learning_rate"] = float(state.optimizers[0].param_groups[0]["lr"])

    def batch_end(self, state: State, logger: Logger) -> None:
        del logger
        self._speed.note(state)
        speed = self._next["images_per_second"] = self._speed.images_per_second
        if speed is not None and self._peak_of_all > 0:
            self._next["mfu"] = speed * self.flops_per_image / self._peak_of_all
        self._show(state)

    def epoch_end(self, state: State, logger: Logger) -> None:
        """Ends a wait that brought no batch: Composer has no other event for it."""
        del state, logger
        self._has_waited()

    def fit_end(self, state: State, logger: Logger) -> None:
        del state, logger
        self.board.ended = time.monotonic()

    def _show(self, state: State) -> None:
        now = state.timestamp
        self.board.newest = self.board.newest._replace(
            batch=now.batch.value,
            images=now.sample.value,
            planned_batches=batches_in_total(state),
            losses=self._losses.copy(),
            **self._next,
        )

    def _has_waited(self) -> None:
        waited, since = self.board.wait
        if since is not None:
            self.board.wait = (waited + time.monotonic() - since, None)


def _saved(saver: Saver) -> Saved | None:
    at = saver.last_saved_at
    return None if at is None else Saved(saver.last_saved_batch, at)
