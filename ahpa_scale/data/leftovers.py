# SPDX-License-Identifier: Apache-2.0
"""Shared memory left behind by jobs that were killed while they opened, read or ended a stream."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from streaming.base.constant import LOCALS, SHM_TO_CLEAN
from streaming.base.distributed import get_local_rank

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
