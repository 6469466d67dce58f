# SPDX-License-Identifier: Apache-2.0
"""The local disk: what lies there, files on their way, and that they are written for good."""

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
    """Every file below a folder, by its path in it, with its size; none where it does not exist.

    Raises:
        OSError: a folder that can't be listed, or `top` is a file.
    """
    for folder, folders, names in os.walk(top, onerror=_raise_unless_gone):
        # Hidden ones are on their way to their names.
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in (name for name in names if not name.startswith(".")):
            path = Path(folder, name)
            with suppress(FileNotFoundError):  # removed since it was listed
                yield path.relative_to(top).as_posix(), path.stat().st_size


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def new_file_beside(target: Path) -> tuple[int, Path]:
    """A hidden file on its way to the name `target`: its descriptor, and its path.

    Unlike tempfile's it has the rights that the process's mask gives: data sets are shared. The
    mask itself can only be read by setting it, which other threads' files would feel.
    """
    path = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666), path


def move_into_place(path: Path, target: Path) -> None:
    """Renames a file, replacing what was there, and flushes that to disk.

    A file that is a mount point of its own, as containers have them, can only be written over.
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
    """Whether something is mounted there, be it another folder of the same disk."""
    # os.path.ismount does not see the latter.
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        place = re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), line.split()[4])
        if place == os.fsencode(folder):
            return True
    return False


def exchange(one: Path, other: Path) -> None:
    """Two names of a disk change places in one step.

    Raises:
        OSError: ENOSYS, EINVAL or ENOTSUP where the system or this disk can't.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    here, exchanging = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if libc.renameat2(here, os.fsencode(one), here, os.fsencode(other), exchanging):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(other))


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
