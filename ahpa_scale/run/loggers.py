# SPDX-License-Identifier: Apache-2.0
"""The logging section -> the loggers that write or serve a run's numbers."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from composer.loggers import LoggerDestination, WandBLogger

from ahpa_scale.callbacks import MetricsFile, Prometheus, TensorBoard, TrainingBar
from ahpa_scale.config.schema import Config
from ahpa_scale.config.schema.training import WANDB_CHOOSES
from ahpa_scale.config.written import as_written
from ahpa_scale.exporter import Board
from ahpa_scale.models.backbone import Backbone
from ahpa_scale.models.flops import training_flops
from ahpa_scale.printable import without_secrets
from ahpa_scale.run.checkpoints import Start


def build_loggers(
    config: Config,
    start: Start,
    tracker_ids: Mapping[str, str],
    backbone: Backbone,
    board: Board | None,
) -> Sequence[LoggerDestination]:
    """Builds the loggers.

    Args:
        config: configuration of the run.
        start: what the run starts from.
        tracker_ids: ids under which trackers know the run.
        backbone: to count its FLOPs.
        board: the numbers that this process serves; None if it serves none.
    """
    chosen, output_dir = config.logging, Path(config.output_dir)
    loggers: list[LoggerDestination] = []
    if board is not None:
        # First: if another logger hangs, the numbers of that batch are already served.
        loggers.append(Prometheus(board, training_flops(backbone)))
    loggers.append(MetricsFile(output_dir, chosen.interval, chosen.router_interval))
    loggers.append(TrainingBar())
    if chosen.tensorboard:
        # Losses are logged with the number of the batch before theirs.
        purge_step = None if start.batch is None else start.batch + 1
        loggers.append(TensorBoard(output_dir / "tensorboard", purge_step))
    if chosen.wandb is not None:
        loggers.append(_wandb(config, chosen.wandb, output_dir, tracker_ids["wandb"]))
    return loggers


def _wandb(config: Config, project: str, output_dir: Path, run_id: str) -> WandBLogger:
    # Imported here: it takes a tenth of a rank's start, and runs without wandb skip it.
    import wandb

    # Without a key wandb would stop and ask, and nobody answers a batch job.
    if wandb.api.api_key is None:
        os.environ.setdefault("WANDB_MODE", "offline")
    # wandb stores and uploads the program's arguments.
    sys.argv[1:] = map(without_secrets, sys.argv[1:])
    return WandBLogger(
        project=None if project == WANDB_CHOOSES else project,
        name=config.run_name,
        init_kwargs={
            "dir": str(output_dir),
            "config": as_written(config),
            "id": run_id,
            "resume": "allow",
        },
    )
