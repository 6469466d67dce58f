# SPDX-License-Identifier: Apache-2.0
"""What a disk or a store said no to, told apart from a fault of the software."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

#: About a file or folder that the user named, or about its disk.
_MENDABLE = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ELOOP),
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ETXTBSY),
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE, errno.EBUSY),
}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
#: Python gives them the number of the kernel's error; without one our own code has raised them.
_NAMED = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)


def mendable(error: BaseException) -> str | None:
    """What to tell a user who can mend it, in one line that names the file or URL; None where the
    error says nothing about either, so that its traceback is worth more.
    """
    if not isinstance(error, OSError):
        return None
    if error.errno is None:
        return " ".join(str(error).split()) if isinstance(error, _NAMED) else None
    if error.errno not in _MENDABLE or (error.filename is None and error.errno not in _FULL):
        return None
    names = [os.fsdecode(one) for one in (error.filename, error.filename2) if one is not None]
    return ": ".join([" to ".join(names) or "writing", str(error.strerror)])


@contextmanager
def naming(place: str | os.PathLike[str]) -> Iterator[None]:
    """Has an error of a file that was open already, as on a full disk, tell what was written."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL and error.filename is None:
            error.filename = os.fspath(place)
        raise
