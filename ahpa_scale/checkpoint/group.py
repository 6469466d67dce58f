# SPDX-License-Identifier: Apache-2.0
"""A process group for moving checkpoints. It waits as long as a slow store needs."""

from __future__ import annotations

import datetime
from typing import Any, TypeVar

import torch.distributed as torch_dist
from composer.utils import dist

T = TypeVar("T")
#: Composer's five minutes per collective are too short here. The watch notices ranks that die.
_PATIENCE = datetime.timedelta(days=1)


class PatientGroup:
    """All ranks, over gloo. Every rank must create it. A single rank opens no group."""

    def __init__(self) -> None:
        self._group: Any = None
        if torch_dist.is_initialized() and dist.get_world_size() > 1:
            self._group = torch_dist.new_group(backend="gloo", timeout=_PATIENCE)

    def gather(self, value: T) -> list[T]:
        """Returns the values of all ranks, in rank order, on every rank."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * dist.get_world_size()
        torch_dist.all_gather_object(values, value, group=self._group)
        return values
