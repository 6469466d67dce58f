# SPDX-License-Identifier: Apache-2.0
"""The processes that draw together. They share no model: they only wait for one another."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed
import typer

from ahpa_scale.exits import FAILED

#: Ranks may differ by hours at the end. A rank that dies breaks the connection at once.
_LONGEST = timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """This process and how many there are.

    Attributes:
        rank: of this process, from 0.
        world_size: of all.
        local_rank: on its host.
    """

    rank: int
    world_size: int
    local_rank: int

    def first_alone(self, work: Callable[[], None]) -> None:
        """Does some work on rank 0 while the others wait.

        Raises:
            typer.Exit: on the other ranks, if it failed on rank 0, which tells why.
        """
        failure: BaseException | None = None
        if self.rank == 0:
            try:
                work()
            except BaseException as error:
                failure = error
        if self.world_size > 1:
            failed = torch.tensor(int(failure is not None))
            torch.distributed.broadcast(failed, src=0)
            if bool(failed) and failure is None:
                raise typer.Exit(FAILED)
        if failure is not None:
            raise failure

    def wait(self) -> None:
        """Waits until every rank is here."""
        if self.world_size > 1:
            torch.distributed.barrier()

    def device(self, wanted: str | None) -> str:
        """The device of this rank: its own GPU unless one is named."""
        if wanted is None:
            wanted = "cuda" if torch.cuda.is_available() else "cpu"
        return f"cuda:{self.local_rank}" if wanted == "cuda" else wanted


@contextmanager
def ranks() -> Iterator[Ranks]:
    """The ranks that a launcher started, or this process alone."""
    rank, world_size, local_rank = (
        int(os.environ.get(name, default))
        for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    if world_size == 1:
        yield Ranks(0, 1, local_rank)
        return
    torch.distributed.init_process_group("gloo", timeout=_LONGEST)
    try:
        yield Ranks(rank, world_size, local_rank)
    finally:
        torch.distributed.destroy_process_group()
