# SPDX-License-Identifier: Apache-2.0
"""Reads parts of large files: by their bounds, or forwards in blocks."""

from __future__ import annotations

import io
import os
from typing import Any, BinaryIO

from ahpa_scale.storage.patience import Progress, patiently
from ahpa_scale.storage.remote import clear_errors, open_store
from ahpa_scale.storage.urls import is_remote, local_path

#: Bytes of a request when a file is read forwards.
_BLOCK = 8 << 20


def read_range(url: str | os.PathLike[str], start: int, stop: int) -> bytes:
    """The bytes from `start` to before `stop`, fewer if the file ends; errors as `read_bytes`."""
    if not is_remote(url):
        with local_path(url).open("rb") as file:
            file.seek(start)
            return file.read(max(0, stop - start))

    def read(store: Any, path: str) -> bytes:
        return bytes(store.cat_file(path, start=start, end=stop))

    return b"" if stop <= start else _asked(url, read)


def open_forwards(url: str | os.PathLike[str]) -> BinaryIO:
    """Opens a file for reading from its start to its end. Skipping what lies between is cheap; of a
    store, each block is one request, so steps backwards are dear. Errors as `read_bytes`.
    """
    if not is_remote(url):
        return local_path(url).open("rb")
    size = _asked(url, lambda store, path: int(store.info(path)["size"]))
    return io.BufferedReader(_Blocks(str(url), size), _BLOCK)


def _asked(url: str | os.PathLike[str], action: Any) -> Any:
    def attempt(progress: Progress) -> Any:
        with clear_errors(url):
            return action(*open_store(str(url)))

    return patiently(url, attempt)


class _Blocks(io.RawIOBase):
    """A remote file; each read is a request."""

    def __init__(self, url: str, size: int) -> None:
        super().__init__()
        self._url, self._size, self._place = url, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = max(0, start + offset)
        return self._place

    def readinto(self, buffer: Any) -> int:
        stop = min(self._place + len(buffer), self._size)
        content = read_range(self._url, self._place, stop)
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)
