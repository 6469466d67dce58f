# SPDX-License-Identifier: Apache-2.0
"""Sums collected during a batch, and added up over the ranks once at its end."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn


class RankSums(nn.Module):
    """Base of everything that learns from a batch without waiting for the device.

    Micro-batches only :meth:`add` to the sums; :func:`commit_all` ends the batch, adds them up over
    the ranks and hands them to :meth:`settle`. So neither micro-batches nor ranks change a result.
    """

    def __init__(self) -> None:
        super().__init__()
        # A plain attribute, no buffer: DDP broadcasts rank 0's buffers before every forward pass.
        self._pending: list[Tensor] | None = None

    @torch.no_grad()
    def add(self, *sums: Tensor) -> None:
        """Adds one micro-batch's sums, float32; no communication, no host sync."""
        if self._pending is None:
            self._pending = list(sums)
            return
        for total, more in zip(self._pending, sums, strict=True):
            total.add_(more)

    def settle(self, *sums: Tensor) -> None:
        """Takes the batch's sums over all ranks."""
        raise NotImplementedError

    def commit(self) -> None:
        """Ends a batch for this module alone."""
        commit_all([self])

    def take(self) -> list[Tensor] | None:
        """Removes and returns the waiting sums; None where nothing was added."""
        waiting, self._pending = self._pending, None
        return waiting


@torch.no_grad()
def commit_all(parts: Iterable[RankSums]) -> None:
    """Ends a batch: one sum over the ranks for everything that waits, then each part settles.

    Every rank must call it with the same parts waiting. A part with a sum that is not finite
    settles zeros instead, as if no picture had come: a bad batch must not stay in its averages.
    """
    waiting = [(part, sums) for part in parts if (sums := part.take()) is not None]
    if not waiting:
        return
    if dist.is_available() and dist.is_initialized():
        tensors = [tensor for _, sums in waiting for tensor in sums]
        packed = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(packed)
        pieces = iter(packed.split([tensor.numel() for tensor in tensors]))
        waiting = [(p, [next(pieces).view_as(tensor) for tensor in sums]) for p, sums in waiting]
    for part, sums in waiting:
        bad = torch.stack([tensor.isfinite().all() for tensor in sums]).all().logical_not()
        part.settle(*(tensor.masked_fill(bad, 0.0) for tensor in sums))
