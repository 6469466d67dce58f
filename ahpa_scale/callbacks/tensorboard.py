# SPDX-License-Identifier: Apache-2.0
"""Composer's TensorBoard logger, whose curves go on from the checkpoint after a resume. A disk that
takes nothing ends the curves, not the run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from composer.core import Event, State
from composer.loggers import Logger, TensorboardLogger
from composer.utils import dist

from ahpa_scale.log_files import going_on_without


class TensorBoard(TensorboardLogger):
    """As Composer's, but hides what was logged after the checkpoint that a run resumes.

    Args:
        log_dir: local folder.
        purge_step: old points of this batch and later are hidden; None shows all.
    """

    def __init__(self, log_dir: str | os.PathLike[str], purge_step: int | None = None) -> None:
        super().__init__(log_dir=str(log_dir))
        self.purge_step = purge_step
        self._failed = False

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        """As any callback, while the disk takes it."""
        self._try(super().run_event, event, state, logger)

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """As Composer's, while the disk takes it."""
        self._try(super().log_metrics, metrics, step)

    def log_images(self, *arguments: Any, **options: Any) -> None:
        """As Composer's, while the disk takes it."""
        self._try(super().log_images, *arguments, **options)

    def close(self, state: State, logger: Logger) -> None:
        """As Composer's, while the disk takes it."""
        self._try(super().close, state, logger)

    def _try(self, act: Callable[..., None], *arguments: Any, **options: Any) -> None:
        if self._failed:  # a TensorBoard writer that failed once always fails
            return
        assert self.log_dir is not None
        with going_on_without(Path(self.log_dir)):
            try:
                act(*arguments, **options)
            except OSError:
                self._failed = True
                raise

    def _initialize_summary_writer(self) -> None:
        # Composer 0.32.1 has no argument for purge_step.
        from torch.utils.tensorboard import SummaryWriter

        assert self.log_dir is not None
        assert self.run_name is not None
        folder = Path(self.log_dir) / self.run_name
        # Composer opens a file on every rank; the others would hide what rank 0 logs.
        purge_step = self.purge_step if dist.get_global_rank() == 0 else None
        # As in Composer: only Composer flushes, so that no partial file is taken for whole.
        self.writer = SummaryWriter(
            log_dir=str(folder), flush_secs=365 * 24 * 3600, purge_step=purge_step
        )
        # Composer closes the file at each flush; each new one would hide earlier points.
        self.writer.purge_step = None
