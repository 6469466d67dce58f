# SPDX-License-Identifier: Apache-2.0
"""The local disk: lists files, moves them into place, and flushes them to disk."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def local_files(top: Path) -> Iterator[tuple[str, int]]:
    """Path and size of every file below a folder; none if the folder does not exist.

    Raises:
        OSError: a folder can't be listed, or `top` is a file.
    """
    for folder, folders, names in os.walk(top, onerror=_raise_unless_gone):
        # Hidden files and folders are not finished yet.
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in (name for name in names if not name.startswith(".")):
            path = Path(folder, name)
            with suppress(FileNotFoundError):  # removed since it was listed
                yield path.relative_to(top).as_posix(), path.stat().st_size


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def new_file_beside(target: Path) -> tuple[int, Path]:
    """A new hidden file, to be renamed to `target`: its descriptor, and its path.

    Unlike a file of tempfile, it has the permissions of the umask, because data sets are shared.
    The umask can only be read by setting it, which would affect other threads' files.
    """
    path = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666), path


def move_into_place(path: Path, target: Path) -> None:
    """Renames a file, replacing what was there, and flushes it to disk.

    If the target is itself a mount point, as in containers, it can only be overwritten.
    """
    with path.open("rb") as file:
        os.fsync(file.fileno())
    try:
        os.replace(path, target)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        shutil.copyfile(path, target)
        path.unlink()
    sync_folder(target.parent)


def is_mount_point(folder: Path) -> bool:
    """Whether something is mounted there, including another folder of the same disk."""
    # os.path.ismount does not see another folder of the same disk.
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        place = re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), line.split()[4])
        if place == os.fsencode(folder):
            return True
    return False


def exchange(first: Path, second: Path) -> None:
    """Exchanges two names on one disk in one step.

    Raises:
        OSError: ENOSYS, EINVAL or ENOTSUP if the system or this disk can't.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    here, exchanging = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if libc.renameat2(here, os.fsencode(first), here, os.fsencode(second), exchanging):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(second))


def sync_folder(folder: Path) -> None:
    """Flush a local folder's entries to disk, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush a folder and all below it to disk."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)
