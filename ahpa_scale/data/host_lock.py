# SPDX-License-Identifier: Apache-2.0
"""One job at a time opens a stream on a host."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch.distributed as dist
from filelock import BaseFileLock, FileLock, Timeout

from ahpa_scale.data.leftovers import clear_leftovers

#: Two jobs of several nodes could each hold one host and wait for the other's: no wait is endless.
PATIENCE_SECONDS = 60.0
_log = logging.getLogger(__name__)


@contextmanager
def alone_on_host(patience: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Keeps other jobs of this user from opening a stream while this one does.

    streaming looks for the first free number for its shared memory and takes it a moment later;
    jobs that start together on one host take the same one, and the slower dies of a
    FileExistsError. Each host's first rank holds a lock, and no rank begins before it is held.
    Every rank of the job must enter.

    Args:
        patience: seconds to wait for another job; then this one goes on without the lock.
    """
    lock = _acquired(patience) if int(os.environ.get("LOCAL_RANK", "0")) == 0 else None
    with lock or nullcontext():
        # Before the others look for a number: they must find the one that this rank finds.
        clear_leftovers()
        if dist.is_available() and dist.is_initialized():
            dist.barrier()
        yield


def _acquired(patience: float) -> BaseFileLock | None:
    path = Path(tempfile.gettempdir()) / f"ahpa_scale-{os.getuid()}-stream.lock"
    lock = FileLock(path, timeout=patience)
    try:
        lock.acquire()
    except Timeout:
        _log.warning("another job has been opening its data for %g s: not waiting for it", patience)
        return None
    return lock
