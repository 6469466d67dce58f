# SPDX-License-Identifier: Apache-2.0
"""What a run writes down for people: a disk that is full or gone costs these files, not the run."""

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
    """Goes on after a body that could not write to `path`, and says so once for each path."""
    try:
        yield
    except OSError as error:
        if path not in _told:
            _told.add(path)
            _log.warning("%s can't be written, and training goes on without: %s", path, error)


def append_line(path: Path, line: bytes) -> None:
    """Adds a line to a file whole or not at all; a failure is said once and costs the line."""
    with going_on_without(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered: a killed process loses no finished line, and a failed one is not tried again
        # in the middle of the next.
        with path.open("ab", buffering=0) as file:
            end = os.fstat(file.fileno()).st_size  # a pipe has no place to tell
            if file.write(line) != len(line):
                os.ftruncate(file.fileno(), end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
