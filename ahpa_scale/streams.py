# SPDX-License-Identifier: Apache-2.0
"""A console that can't end a run, by going away or by letters that it lacks, and that is told no
secret.
"""

from __future__ import annotations

import io
import os
import select
import sys
from collections.abc import Callable
from typing import Any, TextIO

from ahpa_scale.log_records import mask_records
from ahpa_scale.printable import without_secrets

#: Seconds that a console which takes no bytes now is given before they are dropped.
_PATIENCE = 1.0


def make_lasting() -> None:
    """Replaces this process's standard streams by ones that never raise, and masks what it says.

    What can't be written is dropped: the reader of a pipe has gone, a terminal was hung up, a disk
    is full. Letters that the encoding lacks are written as escapes. Streams that somebody has
    replaced already, as test runners do, stay. Passwords in URLs and concealed values are masked
    there, in tracebacks as well, and in all log records.
    """
    mask_records()
    _open_missing()
    if sys.stdout is sys.__stdout__:
        sys.stdout = _lasting(sys.stdout, 1)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _lasting(sys.stderr, 2)


class _Lasting(io.FileIO):
    """Bytes to a descriptor that stays open."""

    def write(self, data: Any, /) -> int:
        """Writes, or drops what nobody takes."""
        size = memoryview(data).nbytes
        try:
            written = super().write(data)
            if written is None and select.select([], [self], [], _PATIENCE)[1]:
                written = super().write(data)
        except (OSError, ValueError):
            return size
        return size if written is None else written


class _Masking(io.TextIOWrapper):
    """Text without secrets. Trackers that keep the console put a function of their own in the place
    of `write`: it is called with the masked text too.
    """

    _replaced: Callable[[str], int] | None = None

    @property
    def write(self) -> Callable[[str], int]:
        """Writes, as of any stream."""
        write = self._replaced or super().write
        return lambda text: write(without_secrets(text))

    @write.setter
    def write(self, replaced: Callable[[str], int]) -> None:
        self._replaced = replaced


def _lasting(stream: TextIO | None, descriptor: int) -> TextIO:
    buffer = io.BufferedWriter(_Lasting(descriptor, "w", closefd=False))
    return _Masking(
        buffer,
        encoding=None if stream is None else stream.encoding,
        errors="backslashreplace",
        line_buffering=stream is not None and getattr(stream, "line_buffering", False),
        write_through=stream is not None and getattr(stream, "write_through", False),
    )


def _open_missing() -> None:
    """A descriptor that was closed by the shell would become the next file's, and get our lines."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
