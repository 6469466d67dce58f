# SPDX-License-Identifier: Apache-2.0
"""Shared memory of other streams: what killed jobs left behind, and what a search leaves open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from streaming.base.constant import LOCALS, SHM_TO_CLEAN
from streaming.base.distributed import get_local_rank
from streaming.base.shared import SharedMemory, prefix

_MEMORY = Path("/dev/shm")


def clear_leftovers() -> None:
    """Removes shared memory of dead streams. Call it on every rank before a stream is opened.

    For each kind of its shared memory, streaming only finds the first free number. A killed job can
    leave some kinds under its number and not others. If the order of a pass is left, each later job
    that takes this number dies of a FileExistsError. If a position is left, a later job takes it
    for its own. If the list of folders is missing, streaming no longer detects runs that share a
    cache folder. A stream makes this list first and keeps it while it lives, so a number without a
    list belongs to nobody.
    """
    if get_local_rank() != 0:
        return
    for kind in SHM_TO_CLEAN:
        for path in _MEMORY.glob(f"{'[0-9]' * 6}_{kind}"):
            if not path.with_name(f"{path.name[:6]}_{LOCALS}").exists():
                with suppress(FileNotFoundError, PermissionError):
                    path.unlink()


class _ClosedWhenUnused(SharedMemory):
    """Shared memory whose handle closes with its last reference, unless it was made here."""

    def __init__(self, name: str, create: bool, size: int = 0) -> None:
        # Only what was made here has to be removed at exit. The callback is a reference for good.
        super().__init__(name, create, size, auto_cleanup=create)


@contextmanager
def search_closes_its_handles() -> Iterator[None]:
    """While the body runs, streaming's search for a free number closes what it looks at.

    The search opens the memory of every stream on the host and keeps it open until the process
    ends. The handles of a process that opens streams grow with the square of their number: 80
    streams took 20,000 file descriptors.
    """
    prefix.SharedMemory = _ClosedWhenUnused
    try:
        yield
    finally:
        prefix.SharedMemory = SharedMemory
