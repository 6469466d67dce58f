# SPDX-License-Identifier: Apache-2.0
"""Lets only one job at a time open a stream on a host."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch.distributed as dist
from filelock import FileLock, Timeout

from ahpa_scale.data import neighbours
from ahpa_scale.data.leftovers import clear_leftovers

#: Limited, because two multi-node jobs could each hold one host and wait for the other's.
PATIENCE_SECONDS = 60.0
_log = logging.getLogger(__name__)


@contextmanager
def alone_on_host(patience: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Keeps other jobs of this user from opening a stream while this one does.

    streaming looks for the first free number for its shared memory and takes it a moment later.
    Jobs that start together on one host would take the same number, and the slower one would die of
    a FileExistsError. So the first of this job's ranks that share a memory holds a lock, however
    many launchers started them. No rank begins before that. Every rank must enter.

    Args:
        patience: seconds to wait for another job; then this one goes on without the lock.

    Raises:
        UserError: streaming can't handle how the ranks are placed on the hosts.
    """
    place, size = neighbours.local_place()
    lock = _acquired(patience) if place == 0 else nullcontext()
    with lock, neighbours.as_neighbours(place, size):
        # Before the other ranks look for a number: all ranks must find the same one.
        clear_leftovers()
        if dist.is_available() and dist.is_initialized():
            dist.barrier()
        yield


def _acquired(patience: float) -> AbstractContextManager[object]:
    """The lock, held until its context ends; an empty context if the lock can't be had."""
    # In the memory that it protects: containers may share that, but not their temporary folders.
    path = neighbours.MEMORY / f"ahpa_scale-{os.getuid()}-stream.lock"
    lock = FileLock(path, timeout=patience)
    try:
        return lock.acquire()
    except Timeout:
        _log.warning("another job has been opening its data for %g s: not waiting for it", patience)
        return nullcontext()
    except PermissionError as error:  # another container's user with the same number
        _log.debug("no lock while opening data: %s", error)
        return nullcontext()
