# SPDX-License-Identifier: Apache-2.0
"""Standard streams that never raise, even if the console is gone or lacks a character, and that
print no secrets.
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

#: Seconds to wait for a console that takes no bytes now, before they are dropped.
_PATIENCE = 1.0


def make_lasting() -> None:
    """Replaces stdout and stderr by streams that never raise, and masks secrets.

    Bytes that can't be written are dropped: the reader of a pipe has gone, a terminal was hung up,
    a disk is full. Characters that the encoding lacks are written as escapes. Streams that were
    replaced already, as by test runners, stay. Passwords in URLs and concealed values are masked in
    these streams, tracebacks included, and in all log records.
    """
    mask_records()
    _open_missing()
    if sys.stdout is sys.__stdout__:
        sys.stdout = _lasting(sys.stdout, 1)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _lasting(sys.stderr, 2)


class _Lasting(io.FileIO):
    """Writes bytes to a descriptor, and leaves it open."""

    def write(self, data: Any, /) -> int:
        """Writes the bytes, or drops them if nobody takes them."""
        size = memoryview(data).nbytes
        try:
            written = super().write(data)
            if written is None and select.select([], [self], [], _PATIENCE)[1]:
                written = super().write(data)
        except (OSError, ValueError):
            return size
        return size if written is None else written


class _Masking(io.TextIOWrapper):
    """Masks secrets in text. Trackers that record the console replace `write` by a function of
    their own: it gets the masked text too.
    """

    _replaced: Callable[[str], int] | None = None

    @property
    def write(self) -> Callable[[str], int]:
        """The stream's `write`, which masks first."""
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
    """Opens descriptors that the shell has closed: else the next open file would get our lines."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
