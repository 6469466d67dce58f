# SPDX-License-Identifier: Apache-2.0
"""Compares every byte of a checkpoint with what was saved, in place or while it is copied.

Resumed runs and commands for people both use it, so it imports neither torch nor Composer.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ahpa_scale import storage
from ahpa_scale.checkpoint.errors import CheckpointError
from ahpa_scale.checkpoint.find import StoredCheckpoint
from ahpa_scale.checkpoint.manifest import MANIFEST, FileEntry, Manifest, entry_of

#: Called with the number of bytes done so far. The number drops when a part is repeated.
Moved = Callable[[int], None]
_MISSING, _DAMAGED = "is missing", "isn't what was saved"


def damage(checkpoint: StoredCheckpoint, moved: Moved) -> list[str]:
    """Reads all files of a checkpoint to their ends and finds the damaged ones.

    Files in a store are copied one by one to the temporary folder (``TMPDIR``).

    Returns:
        One text for each file that differs from what was saved. Empty if the checkpoint is whole.

    Raises:
        OSError: the store can't be reached, or the disk is full.
    """
    if checkpoint.problem is not None:
        return [checkpoint.problem]
    if not storage.is_remote(checkpoint.url):
        return list(_problems(checkpoint, _in_place, moved))
    with tempfile.TemporaryDirectory(prefix="ahpa-scale-") as room:
        path = Path(room, "file")

        def passing(url: str, entry: FileEntry, moved: Moved) -> str | None:
            try:
                return _copied(url, path, entry, moved)
            finally:
                path.unlink(missing_ok=True)

        return list(_problems(checkpoint, passing, moved))


def copy(checkpoint: StoredCheckpoint, folder: Path, moved: Moved) -> list[str]:
    """Copies a checkpoint with its manifest into an empty local folder.

    Returns:
        What is wrong with the first damaged file; then all copied files are removed. Empty if the
        copy is whole.

    Raises:
        OSError: the store can't be reached, or the disk is full.
    """
    if checkpoint.problem is not None:
        return [checkpoint.problem]
    assert checkpoint.manifest is not None

    def copied(url: str, entry: FileEntry, moved: Moved) -> str | None:
        return _copied(url, folder / url.rsplit("/", 1)[-1], entry, moved)

    problem = next(_problems(checkpoint, copied, moved), None)
    if problem is not None:
        for path in folder.iterdir():
            path.unlink()
        return [problem]
    storage.write_text(folder / MANIFEST, checkpoint.manifest.to_json())
    return []


def newest_whole(
    candidates: Sequence[StoredCheckpoint], attempt: Callable[[StoredCheckpoint], list[str]]
) -> StoredCheckpoint:
    """The newest checkpoint in which `attempt` (such as `damage` or `copy`) finds no fault.

    Args:
        candidates: checkpoints, oldest first, at least one.
        attempt: returns what is wrong with a checkpoint.

    Raises:
        CheckpointError: no checkpoint is whole; the message says what is wrong with the newest.
        OSError: `attempt` raised it.
    """
    first: str | None = None
    for checkpoint in reversed(candidates):
        problems = ["it is half an upload"] if checkpoint.begun else attempt(checkpoint)
        if not problems:
            return checkpoint
        first = first or f"{checkpoint.url}: {problems[0]}"
    others = f" (and none of the {len(candidates) - 1} before is whole)" if candidates[1:] else ""
    raise CheckpointError(f"{first}{others}")


def overtaken(checkpoint: StoredCheckpoint) -> bool:
    """Whether a running job has removed or rewritten a checkpoint since it was listed. If so, its
    faults mean nothing.

    Raises:
        OSError: the store can't be reached.
    """
    try:
        now = storage.read_bytes(storage.join(checkpoint.url, MANIFEST))
        return Manifest.from_json(now) != checkpoint.manifest
    except FileNotFoundError:
        return True
    except CheckpointError:
        return False


def after(moved: Moved, done: int) -> Moved:
    """`moved`, counting on from the bytes already done."""
    return lambda now: moved(done + now)


def _problems(
    checkpoint: StoredCheckpoint, look: Callable[[str, FileEntry, Moved], str | None], moved: Moved
) -> Iterator[str]:
    """What `look` finds wrong, file by file."""
    assert checkpoint.manifest is not None
    done = 0
    for name, entry in checkpoint.manifest.files.items():
        problem = look(storage.join(checkpoint.url, name), entry, after(moved, done))
        if problem is not None:
            yield f"{name} {problem}"
        done += entry.size
        moved(done)


def _in_place(url: str, entry: FileEntry, moved: Moved) -> str | None:
    try:
        return None if entry_of(storage.local_path(url), moved) == entry else _DAMAGED
    except FileNotFoundError:
        return _MISSING


def _copied(url: str, path: Path, entry: FileEntry, moved: Moved) -> str | None:
    try:
        proved = storage.get_proved(url, path, lambda copied: entry_of(copied) == entry, moved)
    except FileNotFoundError:
        return _MISSING
    return None if proved else _DAMAGED
