# SPDX-License-Identifier: Apache-2.0
"""Copies a checkpoint to every node and checks the hash of each file before anything is read.

All nodes agree: if one node finds a damaged file, all step back to the previous checkpoint.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from composer.utils import dist

from ahpa_scale import storage
from ahpa_scale.checkpoint import content
from ahpa_scale.checkpoint.errors import CheckpointError
from ahpa_scale.checkpoint.find import (
    StoredCheckpoint,
    find_checkpoint,
    list_checkpoints,
    trace_of_checkpoints,
)
from ahpa_scale.checkpoint.group import PatientGroup
from ahpa_scale.checkpoint.manifest import Manifest
from ahpa_scale.errors import UserError

_log = logging.getLogger(__name__)
_BETWEEN_LINES = 10.0
_ANOTHER = "name another save_folder to start from scratch"
T = TypeVar("T")


@dataclass(frozen=True)
class LocalCopy:
    """A verified checkpoint on this node's disk.

    Attributes:
        url: where it came from.
        folder: where its files lie.
        manifest: its manifest.
        fetched: the folder is a copy, to be removed after reading.
    """

    url: str
    folder: Path
    manifest: Manifest
    fetched: bool

    def remove(self) -> None:
        """Removes the copy. The checkpoint itself is never removed."""
        if self.fetched and dist.get_local_rank() == 0:
            shutil.rmtree(self.folder, ignore_errors=True)


def open_newest(
    folder: str, cache: Path, check: Callable[[Sequence[StoredCheckpoint]], None] | None = None
) -> LocalCopy | None:
    """The newest undamaged checkpoint of a run. Every rank must call it.

    Damaged checkpoints are skipped, each with a warning.

    Args:
        folder: the run's save_folder, a local path or URL.
        cache: local folder on each node for the copy.
        check: called on rank 0 with all checkpoints, oldest first, before anything is copied. What
            it raises is raised on every rank.

    Returns:
        None if nothing was ever saved there, or if the first save did not finish.

    Raises:
        CheckpointError: there are checkpoints, or traces of them, but none can be used.
        OSError: the store can't be reached.
    """
    group = PatientGroup()
    candidates: list[StoredCheckpoint] = []
    for checkpoint in reversed(_told_by_rank_0(group, lambda: _checked(folder, check))):
        if checkpoint.begun:
            _warn(f"{checkpoint.url} is half an upload ({checkpoint.problem}): stepping over it")
        else:
            candidates.append(checkpoint)
    for checkpoint in candidates:
        problem = checkpoint.problem or _bring(group, checkpoint, cache)
        if problem is None:
            return _local(checkpoint, cache)
        _warn(f"{checkpoint.url} can't be used: {problem}; stepping back to the one before")
    if candidates:
        raise CheckpointError(
            f"{folder} holds {len(candidates)} checkpoint(s), and none can be used; look with "
            f"'ahpa-scale checkpoints verify', and {_ANOTHER}"
        )
    trace = _told_by_rank_0(group, lambda: trace_of_checkpoints(folder))
    if trace is not None:
        raise CheckpointError(
            f"{folder} holds {trace!r}, so a run has saved there, but no checkpoint that can be "
            f"used; {_ANOTHER}"
        )
    return None


def _checked(
    folder: str, check: Callable[[Sequence[StoredCheckpoint]], None] | None
) -> list[StoredCheckpoint]:
    there = list_checkpoints(folder)
    if check is not None:
        check(there)
    return there


def open_checkpoint(url: str, cache: Path) -> LocalCopy:
    """The checkpoint at `url`, or the newest in that folder, verified. Every rank must call it.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
        OSError: the store can't be reached.
    """
    group = PatientGroup()
    checkpoint = _told_by_rank_0(group, lambda: find_checkpoint(url))
    problem = _bring(group, checkpoint, cache)
    if problem is not None:
        raise CheckpointError(f"{checkpoint.url}: {problem}")
    return _local(checkpoint, cache)


def _local(checkpoint: StoredCheckpoint, cache: Path) -> LocalCopy:
    assert checkpoint.manifest is not None
    remote = storage.is_remote(checkpoint.url)
    folder = cache / checkpoint.name if remote else storage.local_path(checkpoint.url)
    return LocalCopy(checkpoint.url, folder, checkpoint.manifest, remote)


def _bring(group: PatientGroup, checkpoint: StoredCheckpoint, cache: Path) -> str | None:
    """Copies and verifies on the first rank of each node. Returns the first fault."""
    problem: tuple[str | None, OSError | None] = (None, None)
    if dist.get_local_rank() == 0:
        try:
            fetch(checkpoint, _local(checkpoint, cache).folder)
        except CheckpointError as error:
            problem = (str(error), None)
        except OSError as error:
            problem = (None, error)
    if problem != (None, None):
        _local(checkpoint, cache).remove()
    outcomes = group.gather(problem)
    for _, failed in outcomes:
        if failed is not None:
            raise failed
    return next((text for text, _ in outcomes if text is not None), None)


def fetch(checkpoint: StoredCheckpoint, folder: Path) -> None:
    """Verifies a checkpoint's files. Files in a store are copied to `folder` first.

    Raises:
        CheckpointError: a file is damaged or missing.
        OSError: the store can't be reached, or the disk is full.
    """
    moved = _telling(checkpoint)
    if storage.is_remote(checkpoint.url):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        problems = content.copy(checkpoint, folder, moved)
    else:
        problems = content.damage(checkpoint, moved)
    if problems:
        raise CheckpointError(problems[0])


def _telling(checkpoint: StoredCheckpoint) -> content.Moved:
    """Logs from time to time how much of a checkpoint has been read."""
    assert checkpoint.manifest is not None
    total = checkpoint.manifest.total_bytes
    begun = said = time.monotonic()

    def moved(done: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said > _BETWEEN_LINES:
            rate = max(done, 1) / (now - begun)
            _log.warning(
                "reading %s: %d of %d MB, %.0f MB/s, %.0f s left",
                *(checkpoint.url, done >> 20, total >> 20, rate / 1e6, (total - done) / rate),
            )
            said = now

    return moved


def _told_by_rank_0(group: PatientGroup, look: Callable[[], T]) -> T:
    """Runs `look` on rank 0 and returns its result, or raises its error, on every rank."""
    answer: T | Exception = RuntimeError("rank 0 told nothing")
    if dist.get_global_rank() == 0:
        try:
            answer = look()
        except (UserError, OSError) as error:
            answer = error
    # This can take minutes: rank 0 retries a store that can't be reached.
    answer = group.gather(answer)[0]
    if isinstance(answer, Exception):
        raise answer
    return answer


def _warn(text: str) -> None:
    if dist.get_global_rank() == 0:
        _log.warning("checkpoints: %s", text)
