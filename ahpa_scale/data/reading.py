# SPDX-License-Identifier: Apache-2.0
"""Reads a source's pictures ahead with threads, and reports what was left out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from ahpa_scale.data.pictures.decode import UnreadablePictureError
from ahpa_scale.data.pictures.rejects import Rejects
from ahpa_scale.data.settings import PrepareSettings
from ahpa_scale.data.sources import Picture, Source, StoredSource


def batches(
    pictures: Source, settings: PrepareSettings, rejects: Rejects
) -> Iterator[list[Picture]]:
    """Whole batches in order, read by threads because decoding releases the GIL. Unreadable
    pictures are skipped and added to the rejects.

    Raises:
        UserError: more pictures are unreadable than allowed.
    """
    ahead = 2 * settings.batch_size
    positions = iter(range(len(pictures)))
    pool = ThreadPoolExecutor(settings.workers, thread_name_prefix="read")
    try:
        waiting: deque[Future[Picture]] = deque(
            pool.submit(pictures.read, position) for position in islice(positions, ahead)
        )
        while waiting:
            batch: list[Picture] = []
            while waiting and len(batch) < settings.batch_size:
                try:
                    batch.append(waiting.popleft().result())
                    rejects.firsts += batch[-1].is_first
                except UnreadablePictureError as error:
                    rejects.add(error)
                waiting.extend(pool.submit(pictures.read, p) for p in islice(positions, 1))
            if batch:
                yield batch
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
