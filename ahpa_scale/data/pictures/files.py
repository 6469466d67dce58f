# SPDX-License-Identifier: Apache-2.0
"""Opens untrusted files: only regular ones, because opening them cannot block."""

from __future__ import annotations

import errno
import os
import stat
from typing import BinaryIO

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISCHR, "a device"),
)


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        OSError: the file is missing or not regular, or the disk refuses; `strerror` says why.
    """
    # Checked first, because just opening a device or a pipe can have effects or block.
    _check_kind(os.stat(path).st_mode, path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check_kind(os.fstat(descriptor).st_mode, path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _check_kind(mode: int, path: str | os.PathLike[str]) -> None:
    for is_kind, name in _KINDS:
        if is_kind(mode):
            raise OSError(errno.EINVAL, f"it is {name}, not a file", os.fspath(path))


def shown(name: str) -> str:
    """A name that is safe in a terminal: characters not printable or not Unicode are escaped."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in name)
