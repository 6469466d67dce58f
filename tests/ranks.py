# SPDX-License-Identifier: Apache-2.0
"""How a test's own gloo ranks meet and end."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from composer.utils.dist import initialize_dist


def meet(rank: int, port: int, ranks: int = 2) -> None:
    """Makes this process one of several ranks on one host, with one thread."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "NODE_RANK": "0",
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    initialize_dist("cpu", timeout=600)


def leave() -> None:
    """Waits for the other ranks and ends this process, successfully, without its destructors.

    gloo's destructor joins its thread holding the interpreter's lock, which that thread may be
    waiting for to let go of the last reduction: once in many runs it hangs for good.
    """
    dist.barrier()
    os._exit(0)
