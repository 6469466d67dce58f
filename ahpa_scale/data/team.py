# SPDX-License-Identifier: Apache-2.0
"""Processes that make a data set's shards together, one on each device.

Each process opens the source and the VAE by itself and asks for one shard after the other. It ends
when its parent is gone.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any

from ahpa_scale.data.settings import Part, PrepareSettings
from ahpa_scale.data.shard_plan import ShardPlan
from ahpa_scale.errors import UserError

_NEXT, _READ, _FAILED = "next", "read", "failed"


class TeamError(RuntimeError):
    """A process failed or was killed. What is done stays, so the same command goes on."""


@dataclass(frozen=True)
class Team:
    """What each process must know of the whole set.

    Attributes:
        part: the part of it that the shards belong to; None: all of it.
        identity: of the preparation, as its codec tells it.
        codec_place: folder or URL that keeps the codec.
    """

    part: Part | None
    identity: dict[str, Any]
    codec_place: str


def make_together(
    settings: PrepareSettings,
    devices: Sequence[str],
    plan: ShardPlan,
    place: str,
    team: Team,
    shards: Sequence[int],
    told: Callable[[int, dict[str, str]], None],
) -> None:
    """Makes shards with a process on each device.

    Args:
        settings: of the preparation.
        devices: a torch device for each process.
        plan: the shards.
        place: folder or URL of the workplace.
        team: what each process must know.
        shards: numbers of those to make.
        told: hears of pictures that were read, and of those that can't be.

    Raises:
        UserError, OSError: as a process found.
        TeamError: a process failed otherwise.
    """
    context = multiprocessing.get_context("spawn")
    left, running = iter(shards), {}
    try:
        for device in devices:
            ours, theirs = context.Pipe()
            chosen = replace(settings, device=device, progress=False)
            work = (chosen, plan, place, team, theirs, len(devices))
            process = context.Process(target=_work, args=work, daemon=True)
            process.start()
            theirs.close()
            running[ours] = process
        while running:
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                try:
                    _answer(ready, left, told)
                except (EOFError, ConnectionError):  # it has ended, maybe just before the answer
                    process = running.pop(ready)
                    process.join()
                    if process.exitcode:
                        raise TeamError(_ended(process.exitcode)) from None
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.join()


def _answer(
    worker: Connection, left: Iterator[int], told: Callable[[int, dict[str, str]], None]
) -> None:
    kind, *content = worker.recv()
    if kind == _NEXT:
        worker.send(next(left, None))
    elif kind == _READ:
        told(*content)
    else:
        raise content[0]


def _ended(code: int) -> str:
    why = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"a process of this preparation ended with {why}; the same command goes on"


def _work(
    settings: PrepareSettings,
    plan: ShardPlan,
    place: str,
    team: Team,
    parent: Connection,
    processes: int,
) -> None:
    # Its parent is gone if the pipe is closed; another command may be at work by now.
    with suppress(EOFError, BrokenPipeError):
        try:
            _make(settings, plan, place, team, parent, processes)
        except (EOFError, BrokenPipeError):
            raise
        except BaseException as error:
            parent.send((_FAILED, _sendable(error)))


def _make(
    settings: PrepareSettings,
    plan: ShardPlan,
    place: str,
    team: Team,
    parent: Connection,
    processes: int,
) -> None:
    import torch

    from ahpa_scale.data.codec_making import share_codec
    from ahpa_scale.data.planning import open_all
    from ahpa_scale.data.shard_maker import ShardMaker
    from ahpa_scale.data.sources.some import SomeOf
    from ahpa_scale.data.workplace import Workplace

    if settings.device == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    card, pictures, vae = open_all(settings)
    made = share_codec(settings, card, vae, pictures, team.identity, team.codec_place)
    card = made.on_card(card)
    if team.part is not None:
        pictures = SomeOf(pictures, team.part.span(len(pictures)))
    if len(pictures) != plan.pictures:
        raise UserError(f"{settings.source} changed: it had {plan.pictures} pictures just now")

    def shards() -> Iterator[tuple[int, range]]:
        while True:
            parent.send((_NEXT,))
            number = parent.recv()
            if number is None:
                return
            yield number, plan.positions(number)

    def told(count: int, rejects: dict[str, str]) -> None:
        parent.send((_READ, count, rejects))

    maker = ShardMaker(settings, card, vae, pictures, Workplace(place), made.codec)
    maker.make(shards(), told)


def _sendable(error: BaseException) -> Any:
    """The error itself if it is one that a user can mend or wait for, else its traceback."""
    if isinstance(error, UserError | OSError):
        with suppress(Exception):
            return pickle.loads(pickle.dumps(error))
    text = "".join(traceback.format_exception(error)).strip()
    return TeamError(f"a process of this preparation failed:\n{text}")
