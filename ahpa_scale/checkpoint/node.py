# SPDX-License-Identifier: Apache-2.0
"""What the ranks of a node share while they read weights: one folder, one download."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from composer.utils import dist

from ahpa_scale import storage
from ahpa_scale.checkpoint.group import PatientGroup
from ahpa_scale.errors import UserError


@contextmanager
def node_folder() -> Iterator[Path]:
    """A temporary folder of this node; it is removed when all ranks have left. Every rank must
    use it.
    """
    group = PatientGroup()
    with tempfile.TemporaryDirectory(prefix="ahpa-scale-") as own:
        folders = group.gather(own)
        try:
            yield Path(folders[dist.get_global_rank() - dist.get_local_rank()])
        finally:
            group.gather(None)


def local_file(url: str, folder: Path) -> Path:
    """A file of this machine; an object in a store is copied to `folder` once. Every rank must
    call it.

    Raises:
        FileNotFoundError: nothing of this name exists.
        OSError: the store can't be reached, or the disk refuses.
    """
    if not storage.is_remote(url):
        return storage.local_path(url)
    copy = folder / url.rstrip("/").rsplit("/", 1)[-1]
    problem: Exception | None = None
    if dist.get_local_rank() == 0:
        try:
            storage.get_file(url, copy)
        except (UserError, OSError) as error:
            problem = error
    for failed in PatientGroup().gather(problem):
        if failed is not None:
            raise failed
    return copy
