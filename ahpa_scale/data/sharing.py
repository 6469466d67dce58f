# SPDX-License-Identifier: Apache-2.0
"""Cache folders that several jobs, hosts or containers use at once.

streaming detects other users through shared memory, but users of one cache may not share memory.
Shards appear in a cache whole or not at all, so two users may fetch the same shard. But a user with
a cache limit counts and removes the shards there, so it must be alone.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
import weakref
from pathlib import Path

from ahpa_scale.errors import HostError

#: Ends the names of shards that are being fetched.
ARRIVING = ".arriving"
_MARKER = ".in-use"
#: Errors of file systems without locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
#: Seconds to wait for a user that clears up, which needs the exclusive lock, or was just killed.
_PATIENCE = 10.0
_BETWEEN_TRIES = 0.05


def hold_cache(folder: str, holder: object, *, alone: bool) -> None:
    """Marks a cache folder as used while `holder` and its process live; the kernel removes the
    mark, however they end. Also removes partly fetched shards of killed processes.

    Args:
        folder: the cache of one data set.
        holder: object that reads from it.
        alone: whether nobody else may use it.

    Raises:
        HostError: somebody else uses the folder, and one of the two must be alone.
    """
    path = Path(folder, _MARKER)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
    weakref.finalize(holder, os.close, descriptor)
    if _locked(descriptor, fcntl.LOCK_EX):
        for left in path.parent.rglob(f".*{ARRIVING}"):
            left.unlink(missing_ok=True)
    until = time.monotonic() + _PATIENCE
    while not _locked(descriptor, fcntl.LOCK_EX if alone else fcntl.LOCK_SH):
        if time.monotonic() > until:
            raise HostError(
                f"data.local: the cache {folder} is in use by another run, and data.cache_limit, "
                "which one of both has, needs a cache of its own: name another folder"
            )
        time.sleep(_BETWEEN_TRIES)


def _locked(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _NO_LOCKS
    return True
