# SPDX-License-Identifier: Apache-2.0
"""One job at a time opens a stream on a host."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch.distributed as dist
from filelock import BaseFileLock, FileLock, Timeout

from ahpa_scale.data import neighbours
from ahpa_scale.data.leftovers import clear_leftovers

#: Two jobs of several nodes could each hold one host and wait for the other's: no wait is endless.
PATIENCE_SECONDS = 60.0
_log = logging.getLogger(__name__)


@contextmanager
def alone_on_host(patience: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Keeps other jobs of this user from opening a stream while this one does.

    streaming looks for the first free number for its shared memory and takes it a moment later;
    jobs that start together on one host take the same one, and the slower dies of a
    FileExistsError. The first of this job's ranks that share a memory holds a lock, however many
    launchers have started them, and no rank begins before it is held. Every rank must enter.

    Args:
        patience: seconds to wait for another job; then this one goes on without the lock.

    Raises:
        UserError: ranks lie on the hosts in a way that streaming can't take.
    """
    place, size = neighbours.local_place()
    lock = _acquired(patience) if place == 0 else None
    with neighbours.as_neighbours(place, size), lock or nullcontext():
        # Before the others look for a number: they must find the one that this rank finds.
        clear_leftovers()
        if dist.is_available() and dist.is_initialized():
            dist.barrier()
        yield


def _acquired(patience: float) -> BaseFileLock | None:
    # Beside what it protects: containers may share the one and not their temporary folders.
    path = neighbours.MEMORY / f"ahpa_scale-{os.getuid()}-stream.lock"
    lock = FileLock(path, timeout=patience)
    try:
        lock.acquire()
    except Timeout:
        _log.warning("another job has been opening its data for %g s: not waiting for it", patience)
        return None
    except PermissionError as error:  # another container's user of the same number
        _log.debug("no lock while opening data: %s", error)
        return None
    return lock
