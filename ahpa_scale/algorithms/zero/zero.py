# SPDX-License-Identifier: Apache-2.0
"""Trains a Composer model with DeepSpeed ZeRO."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
import torch.distributed as dist
from composer.core import Algorithm, Event, Precision, State
from composer.loggers import Logger
from torch import nn

from ahpa_scale.algorithms.composer_options import refuse_save_folder
from ahpa_scale.algorithms.grad_clip import log_norms, parameter_groups
from ahpa_scale.algorithms.timing import Every
from ahpa_scale.algorithms.zero.files import MappedFiles, keep_in_files
from ahpa_scale.algorithms.zero.front import (
    SHARDS,
    ZeroFront,
    leave_front_alone,
    refuse_composers_checkpoints,
)
from ahpa_scale.algorithms.zero.optimizer import ZeroStep
from ahpa_scale.algorithms.zero.partition import Partition
from ahpa_scale.algorithms.zero.scaling import LossScale
from ahpa_scale.algorithms.zero.settings import ZeroSettings
from ahpa_scale.errors import UserError
from ahpa_scale.torch_version import accept_old_collectives


class ZeRO(Algorithm):
    """Shards training by DeepSpeed ZeRO, which left Composer in 0.28.

    After everything is attached and before anything is loaded, the model goes to a DeepSpeed
    engine, which takes the place of DDP's wrapper in ``state.model``. Composer still owns batches,
    micro-batches, schedulers, events and ``backward``. `ahpa_scale.checkpoint` saves and loads each
    rank's part; Composer's own checkpoints are refused.

    Args:
        settings: stage and options.
        max_norm: bound of the gradient norm of each optimizer group, or None; DeepSpeed keeps
            ZeRO's gradients to itself, so `GradClip` can't clip them.
        log_interval: time string between logged norms, as `GradClip` logs them.

    Attributes:
        scale: the loss scale under float16, else None; part of the checkpoint.

    Raises:
        UserError: on ``BEFORE_LOAD``: no process group, a precision for which Composer scales
            the loss, Composer's own checkpoints, or an offload folder that can't be written to or
            is too small.
    """

    def __init__(
        self,
        settings: ZeroSettings | None = None,
        *,
        max_norm: float | None = None,
        log_interval: str = "50ba",
    ) -> None:
        self.settings = settings or ZeroSettings()
        self.max_norm = max_norm
        self.log_due = Every(log_interval, "log_interval")
        self.scale = LossScale() if self.settings.autocast == torch.float16 else None
        self._names: list[str] = []

    def match(self, event: Event, state: State) -> bool:
        """Before loading, before scaled backward passes, after batches whose norms are logged."""
        if event in (Event.BATCH_END, Event.EPOCH_END):
            return self.log_due(event, state)
        if event == Event.BEFORE_BACKWARD:
            return self.scale is not None
        return event == Event.BEFORE_LOAD

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Hands the model over, scales the loss's gradient, or logs the gradients' norms."""
        if event == Event.BEFORE_LOAD:
            self._hand_over(state)
            return
        if event == Event.BEFORE_BACKWARD:
            assert self.scale is not None
            state.loss = self.scale.scaled(state.loss)
            return
        (optimizer,) = state.optimizers
        assert isinstance(optimizer, ZeroStep)
        if self.scale is not None:
            logger.log_metrics({"loss_scale": self.scale.value})
        if optimizer.last_norms:  # none where the scale overflowed
            log_norms(dict(zip(self._names, optimizer.last_norms, strict=True)), logger)

    def state_dict(self) -> dict[str, Any]:
        """The loss scale, if there is one: only numbers."""
        return {} if self.scale is None else dict(self.scale.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        if self.scale is not None:
            self.scale.load_state_dict(state)

    def _hand_over(self, state: State) -> None:
        if not dist.is_initialized():
            raise UserError(
                "ZeRO needs a process group: call composer.utils.dist.initialize_dist first"
            )
        if state.precision == Precision.AMP_FP16:
            raise UserError(
                "ZeRO scales the loss itself: give the Trainer precision='fp32', and ZeroSettings "
                "autocast=torch.float16"
            )
        refuse_save_folder(state, SHARDS)
        model, (optimizer,) = state.model, state.optimizers
        self._names = _group_names(model, optimizer)
        names = {p: name for name, p in model.named_parameters() if p.requires_grad}
        folder = self.settings.offload_folder
        files = None if folder is None else MappedFiles(folder)
        config = self.settings.deepspeed(self.max_norm)
        engine = _initialize(model, optimizer, config, on_cpu=state.device._device.type == "cpu")
        partition = Partition(engine.optimizer, names, self.settings.stage)
        if files is not None:
            parameters = self.settings.offload == "parameters"
            keep_in_files(engine.optimizer, files, partition.flats, parameters)
        leave_front_alone()
        state.model = ZeroFront(model, engine, partition)
        state.optimizers = [ZeroStep(engine, self.settings.stage, self.scale)]
        refuse_composers_checkpoints(state)


def _initialize(
    model: nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any], on_cpu: bool
) -> Any:
    # Imported here: the import takes seconds and looks for compilers and devices.
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # One of DeepSpeed's unused optimizers is compiled at its import. torch would start up to 32
    # compilers on each rank then; it still does at the first block that is compiled.
    os.environ.setdefault("TORCH_WARM_POOL", "0")
    accept_old_collectives()
    import deepspeed

    if on_cpu:
        # For ranks on one host DeepSpeed would first compile a kernel that does what gloo does.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    # DeepSpeed gives its float16 scaler to every later engine of the process too; see `scaling`.
    engine.optimizer.torch_autocast_gradscaler = None
    _share_float32_shards(engine.optimizer)
    return engine


def _share_float32_shards(zero: Any) -> None:
    """Makes stage 3 keep its float32 shards once.

    Where both are float32 on one device, DeepSpeed wants one copy of the shards for computing and
    updating. But version 0.19.8 compares a device with its name, and so keeps two.
    """
    for working, master in zip(
        getattr(zero, "fp16_partitioned_groups_flat", ()),
        getattr(zero, "fp32_partitioned_groups_flat", ()),
        strict=True,
    ):
        if working is None or (working.dtype, working.device) != (master.dtype, master.device):
            continue
        if working.shape == master.shape:
            master.data = working.data


def _group_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """What each optimizer group holds: the backbone, or which attachment.

    Raises:
        UserError: a group mixes them, so they could not be clipped separately.
    """
    owner = {p: name for name, group in parameter_groups(model).items() for p in group}
    names = []
    for number, group in enumerate(optimizer.param_groups):
        owners = sorted({owner[p] for p in group["params"]})
        if len(owners) != 1:
            raise UserError(
                f"optimizer group {number} holds {' and '.join(owners) or 'nothing'}: give the "
                "backbone and each attachment groups of their own"
            )
        names.append(owners[0])
    return names
