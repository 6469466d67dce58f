# SPDX-License-Identifier: Apache-2.0
"""Whether a place takes what will be written to it, found out before hours of work."""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import suppress
from pathlib import Path

from ahpa_scale import storage

# As much as a file system has to find a block for.
_BYTES = 4096


def try_to_write(url: str | os.PathLike[str]) -> None:
    """Writes a small file to a folder or store, reads it back and removes it. A folder that is not
    there is not made: the nearest one above it is tried.

    Raises:
        OSError: it can't be written to, or gives back something else.
        UserError: an unknown scheme, or a store that refuses.
    """
    name = f".trial-{secrets.token_hex(8)}"
    remote = storage.is_remote(url)
    folder = str(url) if remote else str(_nearest(storage.local_path(url).absolute()))
    place, content = storage.join(folder, name), secrets.token_bytes(_BYTES)
    storage.write_bytes(place, content)
    try:
        if storage.read_bytes(place) != content:
            raise OSError(errno.EIO, "it does not give back what was written to it", folder)
    finally:
        # A bucket that keeps all it is given is good enough to save in.
        with suppress(OSError):
            storage.remove(place)


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest one above that is there."""
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    return folder
