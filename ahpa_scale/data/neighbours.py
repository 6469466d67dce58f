# SPDX-License-Identifier: Apache-2.0
"""Which ranks of a job share a host's memory: launchers' variables only say who was started
together.
"""

from __future__ import annotations

import os
import tempfile
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
    """This rank's number among those that share its memory, and how many those are.

    Two launchers on one host share it, and so do containers that were given one /dev/shm; ranks of
    one launcher may run in containers that don't. Every rank of the job must call this.

    Raises:
        UserError: streaming can't share the data among ranks that lie so.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return get_local_rank(), get_local_world_size()
    told = all_gather_object((_memory(), _temporary_files()))
    check_locks(told)
    return place_among([memory for memory, _ in told], get_rank())


def check_locks(told: Sequence[tuple[str, str]]) -> None:
    """Refuses ranks that share streaming's memory, and not the folder of the locks on it.

    Args:
        told: of every rank, what names its memory, and its folder of temporary files.

    Raises:
        UserError: there are such.
    """
    first: dict[str, int] = {}
    for rank, (memory, files) in enumerate(told):
        other = first.setdefault(memory, rank)
        if files != told[other][1]:
            raise UserError(
                f"ranks {other} and {rank} share one {MEMORY}, and not one folder of temporary "
                "files, where the locks on it lie: set TMPDIR to a folder that both have, or give "
                f"each container a {MEMORY} of its own"
            )


def place_among(memories: Sequence[str], rank: int) -> tuple[int, int]:
    """`local_place` of one rank, by what names the memory of each.

    Raises:
        UserError: ranks of one memory are not neighbours, or memories differ in their ranks.
    """
    ranks = {
        memory: [rank for rank, one in enumerate(memories) if one == memory]
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
    """Has streaming count the ranks of a host so while the body runs."""
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


def _temporary_files() -> str:
    """Names the folder of temporary files among those of one machine."""
    status = os.stat(tempfile.gettempdir())
    return f"{status.st_dev} {status.st_ino}"


def _memory() -> str:
    """Names this process's shared memory among those of all machines: a kernel gives each of its
    mounts a number, and draws an id of its own as it boots.
    """
    return f"{_BOOT.read_text().strip()} {MEMORY.stat().st_dev}"
