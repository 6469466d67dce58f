# SPDX-License-Identifier: Apache-2.0
"""Shared memory that jobs have left behind that were killed while they opened, read or ended."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from streaming.base.constant import LOCALS, SHM_TO_CLEAN
from streaming.base.distributed import get_local_rank

_MEMORY = Path("/dev/shm")


def clear_leftovers() -> None:
    """Removes parts of streams that nobody holds; to be called before one is opened, on every rank.

    streaming looks at each kind of its shared memory for the first gap only. Where a job is killed
    it can leave some kinds under its number and not others: a pass's order, and the next one to
    come to that number dies of a FileExistsError, as often as it is started; a position, which
    would be taken for its own; or anything but the list of its folders, and runs that share a cache
    folder aren't found out any more. A stream makes that list first and keeps it while it lives, so
    a number without one belongs to nobody.
    """
    if get_local_rank() != 0:
        return
    for kind in SHM_TO_CLEAN:
        for path in _MEMORY.glob(f"{'[0-9]' * 6}_{kind}"):
            if not path.with_name(f"{path.name[:6]}_{LOCALS}").exists():
                with suppress(FileNotFoundError, PermissionError):
                    path.unlink()
