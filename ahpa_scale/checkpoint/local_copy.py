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
    Found,
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
    folder: str, cache: Path, check: Callable[[Sequence[Found]], None] | None = None
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
    candidates: list[Found] = []
    for found in reversed(_told_by_rank_0(group, lambda: _checked(folder, check))):
        if found.begun:
            _warn(f"{found.url} is half an upload ({found.problem}): stepping over it")
        else:
            candidates.append(found)
    for found in candidates:
        problem = found.problem or _bring(group, found, cache)
        if problem is None:
            return _local(found, cache)
        _warn(f"{found.url} can't be used: {problem}; stepping back to the one before")
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


def _checked(folder: str, check: Callable[[Sequence[Found]], None] | None) -> list[Found]:
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
    found = _told_by_rank_0(group, lambda: find_checkpoint(url))
    problem = _bring(group, found, cache)
    if problem is not None:
        raise CheckpointError(f"{found.url}: {problem}")
    return _local(found, cache)


def _local(found: Found, cache: Path) -> LocalCopy:
    assert found.manifest is not None
    remote = storage.is_remote(found.url)
    folder = cache / found.name if remote else storage.local_path(found.url)
    return LocalCopy(found.url, folder, found.manifest, remote)


def _bring(group: PatientGroup, found: Found, cache: Path) -> str | None:
    """Copies and verifies on the first rank of each node. Returns the first fault found."""
    problem: tuple[str | None, OSError | None] = (None, None)
    if dist.get_local_rank() == 0:
        try:
            fetch(found, _local(found, cache).folder)
        except CheckpointError as error:
            problem = (str(error), None)
        except OSError as error:
            problem = (None, error)
    if problem != (None, None):
        _local(found, cache).remove()
    all_found = group.gather(problem)
    for _, failed in all_found:
        if failed is not None:
            raise failed
    return next((text for text, _ in all_found if text is not None), None)


def fetch(found: Found, folder: Path) -> None:
    """Verifies a checkpoint's files. Files in a store are copied to `folder` first.

    Raises:
        CheckpointError: a file is damaged or missing.
        OSError: the store can't be reached, or the disk is full.
    """
    moved = _telling(found)
    if storage.is_remote(found.url):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        problems = content.copy(found, folder, moved)
    else:
        problems = content.damage(found, moved)
    if problems:
        raise CheckpointError(problems[0])


def _telling(found: Found) -> content.Moved:
    """Logs from time to time how much of a checkpoint has been read."""
    assert found.manifest is not None
    total = found.manifest.total_bytes
    begun = said = time.monotonic()

    def moved(done: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said > _BETWEEN_LINES:
            rate = max(done, 1) / (now - begun)
            _log.warning(
                "reading %s: %d of %d MB, %.0f MB/s, %.0f s left",
                *(found.url, done >> 20, total >> 20, rate / 1e6, (total - done) / rate),
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
