# SPDX-License-Identifier: Apache-2.0
"""A run's log files for people. A full or missing disk costs these files, not the run."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_log = logging.getLogger(__name__)
_told: set[Path] = set()


@contextmanager
def going_on_without(path: Path) -> Iterator[None]:
    """Goes on if the body can't write to `path`, and warns once per path."""
    try:
        yield
    except OSError as error:
        if path not in _told:
            _told.add(path)
            _log.warning("%s can't be written, and training goes on without: %s", path, error)


def append_line(path: Path, line: bytes) -> None:
    """Adds a line to a file whole or not at all. A failure costs the line and is reported once."""
    with going_on_without(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered: a killed process loses no finished line, and a failed line is not written
        # again in the middle of the next one.
        with path.open("ab", buffering=0) as file:
            end = os.fstat(file.fileno()).st_size  # not tell(), which fails on a pipe
            if file.write(line) != len(line):
                os.ftruncate(file.fileno(), end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
