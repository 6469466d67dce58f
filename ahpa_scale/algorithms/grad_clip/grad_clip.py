# SPDX-License-Identifier: Apache-2.0
"""Clip the backbone's gradients by their own norm, and each attachment's by its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from composer.core import Algorithm, Event, State, TimeUnit
from composer.loggers import Logger
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ahpa_scale.algorithms.timing import Every
from ahpa_scale.errors import UserError

BACKBONE = "backbone"


@torch.no_grad()
def clip_groups(groups: Mapping[str, Sequence[nn.Parameter]], max_norm: float) -> dict[str, Tensor]:
    """Scale every group's gradients so that their joint L2 norm is at most ``max_norm``.

    Clipping by the global norm is Pascanu et al., 2013, "On the difficulty of training recurrent
    neural networks", algorithm 1, here once per group. Works on whole and on sharded gradients.

    Args:
        groups: parameters by group name; those without a gradient are left out.
        max_norm: the bound, in units of the (unscaled) gradient.

    Returns:
        The norm before clipping of each group that has gradients: scalar tensors on its device.
    """
    norms = gradient_norms(groups)
    for name, norm in norms.items():
        clip_grads_with_norm_(groups[name], max_norm, norm)
    return norms


@torch.no_grad()
def gradient_norms(groups: Mapping[str, Sequence[nn.Parameter]]) -> dict[str, Tensor]:
    """The joint L2 norm of each group's gradients, whole or sharded: scalar tensors on their
    device, the same on every rank; groups without a gradient are left out.
    """
    norms = {}
    for name, parameters in groups.items():
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not gradients:
            continue
        norm = get_total_norm(gradients)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()  # sums the shards' parts over the ranks
        norms[name] = norm
    return norms


def parameter_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """``backbone`` and one group per attachment of a `DiffusionGenerator`; else one for all.

    Sees through DDP.
    """
    model = getattr(model, "module", model)
    backbone = getattr(model, "backbone_parameters", None)
    if backbone is None:
        return {BACKBONE: list(model.parameters())}
    groups = {BACKBONE: list(backbone())}
    attachments = model.attachments
    assert isinstance(attachments, nn.Module)
    for name, attachment in attachments.named_children():
        groups[f"attachments.{name}"] = list(attachment.parameters())
    return groups


class GradClip(Algorithm):
    """Clip gradients after the backward passes of a batch, when they have been unscaled.

    Logs the norms before clipping as ``grad_norm/backbone`` and, over all attachments together,
    ``grad_norm/attachments``.

    Args:
        max_norm: bound of the backbone's norm and of each attachment's, above 0; None only
            measures them.
        log_interval: time string between two logged norms; reading one waits for the device, so it
            is not done for every batch.

    Raises:
        UserError: an option out of range.
    """

    def __init__(self, max_norm: float | None, log_interval: str = "50ba") -> None:
        if max_norm is not None and not (max_norm > 0 and math.isfinite(max_norm)):
            raise UserError(f"max_norm is {max_norm}: give a finite number above 0, such as 1.0")
        self.max_norm = max_norm
        self.log_due = Every(log_interval, "log_interval")
        self._found: tuple[int, dict[str, Tensor]] | None = None

    def norms(self, state: State) -> Mapping[str, Tensor] | None:
        """The norms before clipping of the batch that is being trained, still on the device; None
        before they are measured.
        """
        if self._found is None or self._found[0] != state.timestamp.batch.value:
            return None
        return self._found[1]

    def match(self, event: Event, state: State) -> bool:
        if event == Event.AFTER_TRAIN_BATCH:
            return True
        return self.log_due.time.unit != TimeUnit.BATCH and self.log_due(event, state)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if event != Event.AFTER_TRAIN_BATCH:
            if self._found is not None:
                log_norms(self._found[1], logger)
            return
        groups = parameter_groups(state.model)
        if self.max_norm is None:
            norms = gradient_norms(groups)
        else:
            norms = clip_groups(groups, self.max_norm)
        if BACKBONE not in norms:
            raise UserError(
                "GradClip found no gradients of the backbone: ZeRO engines keep their own and clip "
                "them by their own setting"
            )
        self._found = (state.timestamp.batch.value, norms)
        # The clock moves on at the end of the batch; this is batch number (clock + 1).
        every = self.log_due.time
        if every.unit == TimeUnit.BATCH and (state.timestamp.batch.value + 1) % every.value == 0:
            log_norms(norms, logger)


def log_norms(norms: Mapping[str, Tensor], logger: Logger) -> None:
    """Logs norms by group name as `GradClip` does; waits for the device."""
    metrics = {"grad_norm/backbone": float(norms[BACKBONE])}
    heads = [norm for name, norm in norms.items() if name != BACKBONE]
    if heads:
        metrics["grad_norm/attachments"] = float(get_total_norm(heads))
    logger.log_metrics(metrics)
