# SPDX-License-Identifier: Apache-2.0
"""Decides which checkpoints to keep, and removes the others."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from ahpa_scale import storage
from ahpa_scale.checkpoint.find import StoredCheckpoint, list_checkpoints
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

    def to_remove(self, checkpoints: Sequence[StoredCheckpoint]) -> list[StoredCheckpoint]:
        """The checkpoints to remove, out of all, oldest first. The newest whole one always stays,
        and so does the best one. Anything newer stays too, because its upload may still run.
        """
        if self.keep is None:
            return []
        whole = [checkpoint for checkpoint in checkpoints if checkpoint.problem is None]
        if not whole:
            return []
        kept = {checkpoint.name for checkpoint in whole[-self.keep :]}
        kept |= {checkpoint.name for checkpoint in whole if checkpoint.best}
        if self.every is not None:
            kept |= {checkpoint.name for checkpoint in whole if checkpoint.batch % self.every == 0}
        return [
            checkpoint
            for checkpoint in checkpoints
            if checkpoint.name not in kept and checkpoint.batch < whole[-1].batch
        ]


def prune(folder: str, retention: Retention) -> list[str]:
    """Removes the checkpoints that are not kept. If the store refuses to remove one, it stays, with
    a warning.

    Returns:
        Names of the removed checkpoints.
    """
    removed = []
    if retention.keep is None:
        return []
    for checkpoint in retention.to_remove(list_checkpoints(folder)):
        try:
            remove_checkpoint(checkpoint)
        except OSError as error:
            _log.warning("checkpoints: %s is still there: %s", checkpoint.url, error)
            if isinstance(error, UnreachableError):
                break
        else:
            removed.append(checkpoint.name)
    return removed


def remove_checkpoint(checkpoint: StoredCheckpoint) -> None:
    """Removes one checkpoint. The manifest goes first, so leftovers don't count as a checkpoint.

    Raises:
        OSError: the store refused several times.
    """
    storage.remove(storage.join(checkpoint.url, MANIFEST))
    if not storage.is_remote(checkpoint.url):
        shutil.rmtree(storage.local_path(checkpoint.url))
        return
    for name in checkpoint.sizes:
        storage.remove(storage.join(checkpoint.url, name))
