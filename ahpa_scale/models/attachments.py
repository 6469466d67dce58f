# SPDX-License-Identifier: Apache-2.0
"""Details of auxiliary losses: the loss of a released one, and checkpoints of other auxiliaries.

Legend: B batch, N tokens, D width of the backbone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ahpa_scale.errors import UserError

ATTACHMENTS = "attachments."


def tapped_blocks(name: str, taps: int | Sequence[int], depth: int) -> tuple[int, ...]:
    """The blocks that an auxiliary taps, ascending and each once.

    Raises:
        UserError: there is no tap, or one outside 1..`depth`.
    """
    blocks = (taps,) if isinstance(taps, int) else tuple(sorted(set(taps)))
    if not blocks:
        raise UserError(f"auxiliary {name!r} names no block to tap; name at least one")
    for tap in blocks:
        if not 1 <= tap <= depth:
            raise UserError(f"tap {tap} lies outside the backbone's blocks 1 to {depth}")
    return blocks


def released_loss(auxiliary: nn.Module, h_BND: Tensor) -> Tensor:
    """A zero loss that depends on every parameter of a released auxiliary.

    DDP waits for a gradient of each parameter in each step, so heads that are no longer used would
    hang it. One element per parameter gives zero gradients at no cost, without the heads' matrix
    products or the targets. Sharded parameters (FSDP2, ZeRO stage 3) can't be read here, and their
    engines do not need such gradients.
    """
    if any(is_sharded(parameter) for parameter in auxiliary.parameters()):
        return h_BND.new_zeros((), dtype=torch.float32)
    zero = sum((p.flatten()[:1].sum() for p in auxiliary.parameters()), h_BND.new_zeros(()))
    return torch.as_tensor(zero, dtype=torch.float32) * 0.0


def is_sharded(tensor: Tensor) -> bool:
    """Whether a rank holds only a part of the tensor, under FSDP2 or ZeRO stage 3."""
    return isinstance(tensor, DTensor) or hasattr(tensor, "ds_id")


def refuse_other_attachments(
    module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *_: Any
) -> None:
    """A hook before loading: the state must hold exactly the auxiliaries that the model has.

    Raises:
        UserError: one is missing or not expected; the message names it.
    """
    attachments = module.attachments
    assert isinstance(attachments, nn.ModuleDict)
    start = len(prefix + ATTACHMENTS)
    there = {
        key[start:].split(".")[0] for key in state_dict if key.startswith(prefix + ATTACHMENTS)
    }
    here = set(attachments)
    if there - here:
        raise UserError(
            f"the checkpoint holds state of the auxiliary {_names(there - here)}, which this model "
            "does not have; add the algorithm that trained it (alignment.kind), "
            "or load the weights of the backbone alone"
        )
    if here - there:
        raise UserError(
            f"this model has the auxiliary {_names(here - there)}, but the checkpoint was trained "
            "without it; remove the algorithm (alignment.kind=none), "
            "or load the weights of the backbone alone"
        )


def _names(names: set[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names))
