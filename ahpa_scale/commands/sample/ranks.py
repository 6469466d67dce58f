# SPDX-License-Identifier: Apache-2.0
"""The processes that draw together. They share no model: they only wait for one another."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed
import typer

from ahpa_scale.errors import UserError
from ahpa_scale.exits import FAILED, MISTAKE, TRY_AGAIN
from ahpa_scale.unreachable import UnreachableError

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
            code = torch.tensor(0 if failure is None else _code(failure))
            torch.distributed.broadcast(code, src=0)
            if int(code):
                # A launcher ends all ranks once one is gone. Each is about to end by itself, with
                # the code that says why.
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if int(code) and failure is None:
                raise typer.Exit(int(code))
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


def _code(failure: BaseException) -> int:
    """The exit code of the process that fails, see `cli.main`."""
    if isinstance(failure, UnreachableError):
        return TRY_AGAIN
    return MISTAKE if isinstance(failure, UserError | OSError) else FAILED


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
