# SPDX-License-Identifier: Apache-2.0
"""Decides which checkpoints to keep, and removes the others."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from ahpa_scale import storage
from ahpa_scale.checkpoint.find import Found, list_checkpoints
from ahpa_scale.checkpoint.manifest import MANIFEST
from ahpa_scale.errors import UserError
from ahpa_scale.unreachable import UnreachableError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Retention:
    """Which checkpoints to keep.

    Attributes:
        keep: number of newest checkpoints to keep; None: all.
        every: also keep checkpoints whose batch is a multiple of this; None: no others.

    Raises:
        UserError: a number is out of range.
    """

    keep: int | None = None
    every: int | None = None

    def __post_init__(self) -> None:
        if self.keep is not None and self.keep < 1:
            raise UserError(f"keep is {self.keep}: give the number of checkpoints, or None for all")
        if self.every is not None and self.every < 1:
            raise UserError(f"every is {self.every}: give a number of batches above 0")

    def to_remove(self, found: Sequence[Found]) -> list[Found]:
        """The checkpoints to remove, out of all, oldest first. The newest whole one always stays.
        Anything newer stays too, because its upload may still run.
        """
        if self.keep is None:
            return []
        whole = [one for one in found if one.problem is None]
        if not whole:
            return []
        kept = {one.name for one in whole[-self.keep :]}
        if self.every is not None:
            kept |= {one.name for one in whole if one.batch % self.every == 0}
        return [one for one in found if one.name not in kept and one.batch < whole[-1].batch]


def prune(folder: str, retention: Retention) -> list[str]:
    """Removes the checkpoints that are not kept. If the store refuses to remove one, it stays, with
    a warning.

    Returns:
        Names of the removed checkpoints.
    """
    removed = []
    if retention.keep is None:
        return []
    for found in retention.to_remove(list_checkpoints(folder)):
        try:
            remove_checkpoint(found)
        except OSError as error:
            _log.warning("checkpoints: %s is still there: %s", found.url, error)
            if isinstance(error, UnreachableError):
                break
        else:
            removed.append(found.name)
    return removed


def remove_checkpoint(found: Found) -> None:
    """Removes one checkpoint. The manifest goes first, so leftovers don't count as a checkpoint.

    Raises:
        OSError: the store refused several times.
    """
    storage.remove(storage.join(found.url, MANIFEST))
    if not storage.is_remote(found.url):
        shutil.rmtree(storage.local_path(found.url))
        return
    for name in found.sizes:
        storage.remove(storage.join(found.url, name))
