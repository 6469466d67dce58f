# SPDX-License-Identifier: Apache-2.0
"""Tells errors of a disk or a store, which a user can fix, from faults of the software."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

#: Errors about a file or folder that the user named, or about its disk.
_MENDABLE = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ELOOP),
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ETXTBSY),
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE, errno.EBUSY),
}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
#: Python gives them an errno. Without one, our own code has raised them.
_NAMED = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)


def mendable(error: BaseException) -> str | None:
    """One line for an error that the user can fix; it names the file or URL. None for other
    errors: their traceback says more.
    """
    if not isinstance(error, OSError):
        return None
    if error.errno is None:
        return " ".join(str(error).split()) if isinstance(error, _NAMED) else None
    if error.errno not in _MENDABLE or (error.filename is None and error.errno not in _FULL):
        return None
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if name is not None]
    return ": ".join([" to ".join(names) or "writing", str(error.strerror)])


@contextmanager
def naming(place: str | os.PathLike[str]) -> Iterator[None]:
    """Adds the path to the body's full-disk errors: a failed write to an open file lacks it."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL and error.filename is None:
            error.filename = os.fspath(place)
        raise
