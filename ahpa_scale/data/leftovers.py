# SPDX-License-Identifier: Apache-2.0
"""Shared memory of other streams: what killed jobs left behind, and what a search leaves open."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from streaming.base.constant import LOCALS, SHM_TO_CLEAN
from streaming.base.distributed import get_local_rank
from streaming.base.shared import SharedMemory, prefix

_MEMORY = Path("/dev/shm")
#: Longest wait for a job that is ending: a rank that hangs would keep its memory for good.
_PATIENCE_SECONDS = 5.0


def clear_leftovers() -> None:
    """Removes shared memory of dead streams. Call it on every rank before a stream is opened.

    For each kind of its shared memory, streaming only finds the first free number. A killed job can
    leave some kinds under its number and not others. If the order of a pass is left, each later job
    that takes this number dies of a FileExistsError. If a position is left, a later job takes it
    for its own. If the list of folders is missing, streaming no longer detects runs that share a
    cache folder. A stream makes this list first and keeps it while it lives, so a number without a
    list belongs to nobody, or to a job whose ranks are ending one after another. Such a job is
    waited for: its last ranks would complain of the memory that they no longer find.
    """
    if get_local_rank() != 0:
        return
    until = time.monotonic() + _PATIENCE_SECONDS
    while _mapped(_without_list()) and time.monotonic() < until:
        time.sleep(0.05)
    for path in _without_list():
        with suppress(FileNotFoundError, PermissionError):
            path.unlink()


def _without_list() -> list[Path]:
    """Shared memory of numbers that have no list of folders."""
    return [
        path
        for kind in SHM_TO_CLEAN
        for path in _MEMORY.glob(f"{'[0-9]' * 6}_{kind}")
        if not path.with_name(f"{path.name[:6]}_{LOCALS}").exists()
    ]


def _mapped(paths: Sequence[Path]) -> bool:
    """Whether a living process uses one of them, as far as this process may see."""
    marks = []
    for path in paths:
        with suppress(FileNotFoundError):
            told = path.stat()
            device = f"{os.major(told.st_dev):02x}:{os.minor(told.st_dev):02x}"
            marks.append(f" {device} {told.st_ino} ")
    for maps in Path("/proc").glob("[0-9]*/maps") if marks else ():
        with suppress(OSError):
            text = maps.read_text()
            if any(mark in text for mark in marks):
                return True
    return False


class _ClosedWhenUnused(SharedMemory):
    """Shared memory whose handle closes with its last reference, unless it was made here."""

    def __init__(self, name: str, create: bool, size: int = 0) -> None:
        # Only memory that was made here must be removed at exit. The callback for that would keep
        # a reference until then.
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
