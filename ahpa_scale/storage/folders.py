# SPDX-License-Identifier: Apache-2.0
"""Local folders that appear whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ahpa_scale.storage.disk import exchange, is_mount_point, sync_folder, sync_tree
from ahpa_scale.storage.urls import local_path

_ROOM = "partial-"
#: A folder that a new file system contains.
_OF_THE_DISK = "lost+found"
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM)


def is_free(folder: Path) -> bool:
    """Whether a folder may be filled: it does not exist, or has no `entries`."""
    return not (folder.exists() and (not folder.is_dir() or list(entries(folder))))


def entries(folder: Path) -> Iterator[Path]:
    """What users have put into a folder, without the file system's own folder and our unfinished
    folders.
    """
    for path in folder.iterdir():
        if path.name != _OF_THE_DISK and not path.name.startswith(f".{_ROOM}"):
            yield path


def kept_room(target: str | os.PathLike[str]) -> Path:
    """A hidden folder for the content of `target` that outlives this process; it may not exist.
    Nothing here removes it.
    """
    final = Path(os.path.realpath(local_path(target)))
    if is_mount_point(final):
        return final / f".{_ROOM}kept"
    return final.parent / f".{final.name}.{_ROOM}kept"


@contextmanager
def atomic_folder(
    target: str | os.PathLike[str], *, replace: bool = False, marker: str | None = None
) -> Iterator[Path]:
    """Fill a hidden folder; rename it into place on success.

    An old folder is exchanged for the new one in one step, so that one of them is always there. On
    a file system without that step, both are missing for a moment; if the process was killed just
    then, the next call restores the old one. A mount point can't be renamed: the hidden folder lies
    inside it, and its content is moved out piece by piece, the marker last. If the process was
    killed during that, the next call finishes it.

    A failure removes the hidden folder. A killed process leaves it behind under a name that no
    reader looks at; the next call for the same target finds its lock released and removes it.

    Args:
        target: the folder to create; missing parents are created too.
        replace: whether an existing, non-empty target is replaced.
        marker: name of the file that tells readers that the folder is complete.

    Raises:
        FileExistsError: target is a file, or a non-empty folder and `replace` is false.
    """
    final = Path(os.path.realpath(local_path(target)))
    mounted = is_mount_point(final)
    place, prefix = (final, f".{_ROOM}") if mounted else (final.parent, f".{final.name}.{_ROOM}")
    place.mkdir(parents=True, exist_ok=True)
    _clear_up(place, prefix, final, marker)
    if not (is_free(final) or (replace and final.is_dir())):
        raise FileExistsError(f"{final} exists already; choose another place")
    room = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
    lock = _lock(room)
    assert lock is not None
    try:
        content = room / "content"
        content.mkdir()
        yield content
        sync_tree(content)
        if mounted:
            (room / "old").mkdir()
            _move_out(room, final, marker)
        else:
            _put_in_place(content, final, room / "old")
        shutil.rmtree(room, ignore_errors=True)
    finally:
        # If `old` is still there, a move was cut off: the next call undoes or finishes it.
        if not (room / "old").is_dir():
            shutil.rmtree(room, ignore_errors=True)
        os.close(lock)


def _put_in_place(content: Path, final: Path, old: Path) -> None:
    if is_free(final):
        # A rename works onto nothing, or onto an empty folder.
        os.rename(content, final)
    else:
        try:
            exchange(content, final)
        except OSError as error:
            if error.errno not in _NO_EXCHANGE:
                raise
            os.rename(final, old)
            os.rename(content, final)
    sync_folder(final.parent)


def _move_out(room: Path, final: Path, marker: str | None) -> None:
    """Moves the room's content into place, or finishes the move of a killed process."""
    old, new = room / "old", room / "new"
    if not new.exists():
        for path in sorted(entries(final), key=lambda path: path.name != marker):
            os.rename(path, old / path.name)
        sync_folder(final)
        # From here on everything in the target is new.
        os.rename(room / "content", new)
    for path in sorted(new.iterdir(), key=lambda path: path.name == marker):
        if path.name == marker:
            sync_folder(final)
        os.rename(path, final / path.name)
    sync_folder(final)


def _lock(room: Path) -> int | None:
    """An open descriptor that holds the room's lock, or None when a living process holds it."""
    descriptor = os.open(room / "lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _clear_up(place: Path, prefix: str, final: Path, marker: str | None) -> None:
    """Undoes or finishes the moves of killed processes, and removes their rooms."""
    for room in place.glob(f"{prefix}*"):
        # A room without a lock file is being made right now.
        if not (room / "lock").exists():
            continue
        lock = _lock(room)
        if lock is not None:
            if (room / "old").is_dir() and place == final:
                _move_out(room, final, marker)
            elif (room / "old").is_dir() and not final.exists():
                os.rename(room / "old", final)
            shutil.rmtree(room, ignore_errors=True)
            os.close(lock)
