# SPDX-License-Identifier: Apache-2.0
"""Finds the checkpoint that an interrupted run goes on from."""

from __future__ import annotations

from urllib.parse import urlsplit

from ahpa_scale import storage

LATEST = "latest.pt"
# An object store has no links; Composer writes the newest checkpoint's key into a small object.
LATEST_REMOTE = "latest.pt.symlink"


def find_latest(save_folder: str) -> str | None:
    """The newest checkpoint of a folder or URL that Composer saves to, or None if it has none.

    Composer's own autoresume is not used: for a save_folder on an object store it keeps the first
    ``latest.pt`` that it downloads in a folder named like the URL in the working directory, and
    takes that one again at every later restart on this host.
    """
    if not storage.is_remote(save_folder):
        path = storage.local_path(save_folder) / LATEST
        return str(path.resolve()) if path.exists() else None
    link = storage.join(save_folder, LATEST_REMOTE)
    if not storage.exists(link):
        return None
    where = urlsplit(save_folder)
    return f"{where.scheme}://{where.netloc}/{storage.read_text(link).strip()}"
