# SPDX-License-Identifier: Apache-2.0
"""Finds which ranks of a job share a host's memory.

The launchers' environment variables only say which ranks were started together.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist
from streaming.base.distributed import (
    all_gather_object,
    get_local_rank,
    get_local_world_size,
    get_rank,
)

from ahpa_scale.errors import UserError

MEMORY = Path("/dev/shm")
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def local_place() -> tuple[int, int]:
    """This rank's number among the ranks that share its memory, and how many ranks those are.

    Two launchers on one host share a memory, and so do containers with a common /dev/shm. Ranks of
    one launcher may run in containers without one. Every rank of the job must call this.

    Raises:
        UserError: streaming can't share the data among ranks that are placed like this.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return get_local_rank(), get_local_world_size()
    return place_among(all_gather_object(_memory()), get_rank())


def place_among(memories: Sequence[str], rank: int) -> tuple[int, int]:
    """`local_place` of one rank, from the memory id of every rank.

    Raises:
        UserError: ranks of one memory are not consecutive, or not equally many per memory.
    """
    ranks = {
        memory: [number for number, own in enumerate(memories) if own == memory]
        for memory in dict.fromkeys(memories)
    }
    size = len(ranks[memories[0]])
    for start, members in zip(range(0, len(memories), size), ranks.values(), strict=False):
        if members != list(range(start, start + size)):
            told = "; ".join(", ".join(map(str, members)) for members in ranks.values())
            raise UserError(
                f"ranks that share one {MEMORY} must follow one another, equally many everywhere, "
                f"and here they are: {told}; start as many ranks on every host, host after host"
            )
    return rank % size, size


@contextmanager
def as_neighbours(place: int, size: int) -> Iterator[None]:
    """Sets the local rank and local world size that streaming sees while the body runs."""
    told = {"LOCAL_RANK": str(place), "LOCAL_WORLD_SIZE": str(size)}
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        yield
    finally:
        _restore(before)


def _restore(before: Mapping[str, str | None]) -> None:
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


def _memory() -> str:
    """An id of this process's shared memory, unique among all machines: the random id that the
    kernel draws at boot, and the device number of the mount.
    """
    return f"{_BOOT.read_text().strip()} {MEMORY.stat().st_dev}"
