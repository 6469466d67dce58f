# SPDX-License-Identifier: Apache-2.0
"""Reads a source's pictures ahead with threads, and reports what was left out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from ahpa_scale.data.pictures.decode import UnreadablePictureError
from ahpa_scale.data.pictures.rejects import Rejects
from ahpa_scale.data.sources import Picture, Source, StoredSource


@dataclass(frozen=True)
class Batch:
    """Pictures of one shard, in order.

    Attributes:
        shard: its number.
        pictures: those that could be read.
        rejects: those that could not.
        is_last: whether the shard ends with it.
    """

    shard: int
    pictures: list[Picture]
    rejects: list[UnreadablePictureError]
    is_last: bool


def batches(
    pictures: Source, shards: Iterable[tuple[int, range]], *, batch_size: int, workers: int
) -> Iterator[Batch]:
    """Batches of all shards in order, read by threads because decoding releases the GIL. While one
    shard is encoded, the next one is read already.

    Args:
        pictures: the source.
        shards: number and positions of each shard; asked for the next one in time.
        batch_size: most pictures of a batch.
        workers: threads that read.
    """
    positions = (
        (shard, position, position == span[-1]) for shard, span in shards for position in span
    )
    pool = ThreadPoolExecutor(workers, thread_name_prefix="read")
    waiting: deque[tuple[int, bool, Future[Picture]]] = deque()

    def read(number: int) -> None:
        for shard, position, is_last in islice(positions, number):
            waiting.append((shard, is_last, pool.submit(pictures.read, position)))

    try:
        read(2 * batch_size)
        found: list[Picture] = []
        rejects: list[UnreadablePictureError] = []
        while waiting:
            shard, is_last, future = waiting.popleft()
            try:
                found.append(future.result())
            except UnreadablePictureError as error:
                rejects.append(error)
            read(1)
            if is_last or len(found) == batch_size:
                yield Batch(shard, found, rejects, is_last)
                found, rejects = [], []
    finally:
        pool.shutdown(cancel_futures=True)


def report(pictures: Source, rejects: Rejects, out: str, tell: Callable[[str], None]) -> None:
    """Tell what was left out of the source."""
    remarks = pictures.remarks(rejects) if isinstance(pictures, StoredSource) else []
    firsts = None
    if rejects.firsts:
        firsts = f"{rejects.firsts} pictures are animated or have several pages: the first is taken"
    for line in (rejects.summary(out), firsts, *remarks):
        if line is not None:
            tell(line)
