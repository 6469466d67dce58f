# SPDX-License-Identifier: Apache-2.0
"""Lends the averaged weights to a model in training, for pictures and measurements."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import cast

import torch
from composer.core import State
from composer.utils import dist, model_eval_mode
from torch import nn

from ahpa_scale.algorithms.ema import EMA, reshard
from ahpa_scale.callbacks.common import unwrap
from ahpa_scale.models.backbone import Backbone
from ahpa_scale.preemption import Requests


class AskedToLeaveError(Exception):
    """The run is asked to leave, so the work is given up: the checkpoint needs the time."""


@contextmanager
def averages_lent(state: State, requests: Requests) -> Iterator[Backbone]:
    """The backbone with the EMA's weights, if there is an EMA, in evaluation mode.

    Every rank must enter, and make the same number of forward passes: a sharded model needs all
    ranks at every pass. Afterwards the model holds its own weights, exactly, and parameters that
    FSDP2 gathered are shards again.

    Args:
        state: of the run.
        requests: requests from outside.

    Raises:
        AskedToLeaveError: any rank is asked to leave meanwhile, or was before.
    """
    averages = next(
        (algorithm for algorithm in state.algorithms if isinstance(algorithm, EMA)), None
    )
    lent = averages.applied(state.model) if averages else nullcontext()
    with lent, _evaluating(state.model):
        backbone = cast(Backbone, unwrap(state.model).dit)

        def vote(module: nn.Module, inputs: object) -> None:
            del module, inputs
            _leave_together(backbone, requests)

        # Before all other hooks: those of a sharded model gather its weights.
        hook = backbone.register_forward_pre_hook(vote, prepend=True)
        try:
            yield backbone
        finally:
            hook.remove()


def _leave_together(backbone: Backbone, requests: Requests) -> None:
    """Asks all ranks before each forward pass."""
    asked = requests.leaving or requests.leave is not None
    # Not made from a parameter: a copy of a shard would be a shard too.
    flag = torch.tensor(float(asked), device=next(backbone.parameters()).device)
    dist.all_reduce(flag, reduce_operation="MAX")
    if bool(flag):
        raise AskedToLeaveError


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    with model_eval_mode(model):
        try:
            yield
        finally:
            reshard(model)
