# SPDX-License-Identifier: Apache-2.0
"""Composer's TensorBoard logger that goes on with a run's curves where its checkpoint was taken."""

from __future__ import annotations

import os
from pathlib import Path

from composer.loggers import TensorboardLogger
from composer.utils import dist


class TensorBoard(TensorboardLogger):
    """As Composer's; what was logged after the checkpoint that a run goes on from is not shown.

    Args:
        log_dir: local folder.
        purge_step: first batch whose older points are hidden; None: all are shown.
    """

    def __init__(self, log_dir: str | os.PathLike[str], purge_step: int | None = None) -> None:
        super().__init__(log_dir=str(log_dir))
        self.purge_step = purge_step

    def _initialize_summary_writer(self) -> None:
        # Composer 0.32.1 has no argument for it.
        from torch.utils.tensorboard import SummaryWriter

        assert self.log_dir is not None
        assert self.run_name is not None
        folder = Path(self.log_dir) / self.run_name
        # Composer opens a file on every rank; one that logs nothing would hide what rank 0 logs.
        purge_step = self.purge_step if dist.get_global_rank() == 0 else None
        # As Composer has it: flushed by Composer alone, so that no half file is taken for whole.
        self.writer = SummaryWriter(
            log_dir=str(folder), flush_secs=365 * 24 * 3600, purge_step=purge_step
        )
        # Composer closes the file at each flush, and every new one would hide the points before.
        self.writer.purge_step = None
