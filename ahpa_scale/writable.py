# SPDX-License-Identifier: Apache-2.0
"""Finds out before hours of work whether a place can be written to."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ahpa_scale import storage

# Enough that a file system must allocate a block.
_BYTES = 4096


def try_to_write(url: str | os.PathLike[str], look: Callable[[str], None] | None = None) -> None:
    """Writes a small file to a folder or store, reads it back and removes it. A missing folder is
    not made: its nearest existing parent is tried.

    Args:
        url: of the folder or store.
        look: called with the URL of the small file while it is there.

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
        if look is not None:
            look(place)
    finally:
        # A bucket that forbids removal is good enough to save in.
        with suppress(OSError):
            storage.remove(place)


def _nearest(folder: Path) -> Path:
    """The folder, or its nearest existing parent."""
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    return folder
