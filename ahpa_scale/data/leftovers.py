# SPDX-License-Identifier: Apache-2.0
"""Shared memory that a killed job has left under the number that a new stream has just taken."""

from __future__ import annotations

from contextlib import suppress
from multiprocessing.shared_memory import SharedMemory

import torch.distributed as dist
from streaming.base.constant import EPOCH_DATA, EPOCH_SHAPE, RESUME
from streaming.base.distributed import get_local_rank

#: What streaming makes later than the number itself, and therefore doesn't make anew.
_MADE_LATER = (RESUME, EPOCH_SHAPE, EPOCH_DATA)


def clear_leftovers(number: int) -> None:
    """Removes what lies under this number; to be called between opening a stream and using it.

    streaming looks at each kind of its shared memory for the first gap only. A job that is killed
    while it shares a pass's order can leave that behind alone; the next one to come to its number
    dies of a FileExistsError, as often as it is started, and a position left behind would be taken
    for its own. Whoever holds the number is the only one to use it, so whatever is there is stale.
    Every rank of the job must call.
    """
    if get_local_rank() == 0:
        for kind in _MADE_LATER:
            with suppress(FileNotFoundError):
                left = SharedMemory(f"{number:06}_{kind}")
                left.close()
                left.unlink()
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
