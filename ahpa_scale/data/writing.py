# SPDX-License-Identifier: Apache-2.0
"""Writes shards to a folder, or uploads each full shard to a store through our own storage."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

from streaming import MDSWriter

from ahpa_scale import storage


class ShardWriter(MDSWriter):
    """streaming's writer with our uploads: streaming's know fewer stores, and only log failures.

    Attributes:
        failure: the first error of an upload, or None.

    Args:
        room: local folder for shards; full shards move to the store.
        url: folder in the store; None if the shards stay in `room`.
        options: options of MDSWriter.
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
