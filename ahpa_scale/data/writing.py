# SPDX-License-Identifier: Apache-2.0
"""Writes shards to a folder, or as they fill to a store, by our own storage."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

from streaming import MDSWriter

from ahpa_scale import storage


class ShardWriter(MDSWriter):
    """streaming's writer, which knows fewer kinds of stores and only logs what went wrong there.

    Attributes:
        failure: what ended an upload; None while nothing has.

    Args:
        room: local folder for shards; they leave it for the store when they are full.
        url: of the store; None: `room` is where they are to be.
        options: of MDSWriter.
    """

    def __init__(self, room: str, url: str | None, **options: Any) -> None:
        super().__init__(out=room, **options)
        self.failure: BaseException | None = None
        if url is not None:
            self.cloud_writer = _Upload(Path(room), url)

    def exception_callback(self, future: Future[None]) -> None:
        """Stops the work at the first upload that fails."""
        failure = None if future.cancelled() else future.exception()
        if failure is not None:
            self.failure = self.failure or failure
            self.event.set()


class _Upload:
    def __init__(self, room: Path, url: str) -> None:
        self._room, self._url = room, url

    def upload_file(self, name: str) -> None:
        storage.put_file(self._room / name, storage.join(self._url, name))
