# SPDX-License-Identifier: Apache-2.0
"""A process group for those who move checkpoints: it waits as long as a slow store takes."""

from __future__ import annotations

import datetime
from typing import Any, TypeVar

import torch.distributed as torch_dist
from composer.utils import dist

T = TypeVar("T")
#: Composer gives every collective five minutes; a rank that dies meanwhile is the watch's business.
_PATIENCE = datetime.timedelta(days=1)


class PatientGroup:
    """All ranks, over gloo. Every rank must make it; one rank alone needs none."""

    def __init__(self) -> None:
        self._group: Any = None
        if torch_dist.is_initialized() and dist.get_world_size() > 1:
            self._group = torch_dist.new_group(backend="gloo", timeout=_PATIENCE)

    def gather(self, value: T) -> list[T]:
        """Every rank's value, by rank; on every rank."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * dist.get_world_size()
        torch_dist.all_gather_object(values, value, group=self._group)
        return values
