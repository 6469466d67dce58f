# SPDX-License-Identifier: Apache-2.0
"""Writes a snapshot to a folder or object store during training, whole or not at all.

Every rank writes its own file, rank 0 also the shared state. Then rank 0 writes the manifest, which
makes the folder a checkpoint, and finally ``latest``.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from composer.utils import dist

from ahpa_scale import storage
from ahpa_scale.checkpoint.best import Contest
from ahpa_scale.checkpoint.errors import CheckpointError, StoreAwayError
from ahpa_scale.checkpoint.find import LATEST, checkpoint_name
from ahpa_scale.checkpoint.group import PatientGroup
from ahpa_scale.checkpoint.manifest import MANIFEST, STATE, FileEntry, Manifest, entry_of
from ahpa_scale.checkpoint.reader import rank_file
from ahpa_scale.checkpoint.retention import Retention, prune
from ahpa_scale.checkpoint.snapshot import Snapshot
from ahpa_scale.tensor_files import save_tensors
from ahpa_scale.unreachable import UnreachableError

_SPOOL = ".spool-"


class Writer:
    """Writes the checkpoints of one run, one at a time, from one thread.

    Args:
        folder: local path or URL.
        retention: which older checkpoints stay.
        group: a group of all ranks that nothing else uses.
        contest: finds the best checkpoint.
    """

    def __init__(
        self, folder: str, retention: Retention, group: PatientGroup, contest: Contest
    ) -> None:
        self.folder = folder
        self.retention = retention
        self._group, self._contest = group, contest

    def write(self, snapshot: Snapshot, manifest: Manifest) -> None:
        """Writes one checkpoint and waits for all ranks.

        Raises:
            CheckpointError: some rank could not write; the message says which and why. Older
                checkpoints are unchanged, except an earlier attempt at this batch.
        """
        url = storage.join(self.folder, checkpoint_name(manifest.batch))
        self._together(lambda: self._make_way(url))
        files: dict[str, FileEntry] = {}
        for part in self._together(lambda: self._write_rank(url, snapshot)):
            files |= part
        self._together(lambda: self._complete(url, replace(manifest, files=files)))

    def _make_way(self, url: str) -> None:
        """Removes an old manifest, so that its checkpoint is invalid before its files change.

        Also removes leftovers of earlier attempts now, while no rank of this job writes. Host names
        and process numbers can't tell whose they are: machines and containers share both.
        """
        if dist.get_global_rank() != 0:
            return
        storage.remove(storage.join(url, MANIFEST))
        if not storage.is_remote(url):
            for room in storage.local_path(url).glob(f"{_SPOOL}*"):
                shutil.rmtree(room, ignore_errors=True)

    def _write_rank(self, url: str, snapshot: Snapshot) -> dict[str, FileEntry]:
        rank = dist.get_global_rank()
        with _spool(url) as room:
            save_tensors(snapshot.tensors, room / rank_file(rank), snapshot.metadata)
            if rank == 0:
                (room / STATE).write_text(snapshot.state_file(), encoding="utf-8")
            files = {path.name: entry_of(path) for path in sorted(room.iterdir())}
            for name in files:
                storage.put_file(room / name, storage.join(url, name))
        return files

    def _complete(self, url: str, manifest: Manifest) -> None:
        if dist.get_global_rank() != 0:
            return
        sizes = storage.find(url)
        problem = manifest.misfit(sizes)
        if problem is not None:
            raise OSError(f"{url}: {problem} after its upload")
        storage.write_text(storage.join(url, MANIFEST), manifest.to_json())
        name = checkpoint_name(manifest.batch)
        storage.write_text(storage.join(self.folder, LATEST), f"{name}\n")
        self._contest.settle(self.folder, manifest.batch)
        prune(self.folder, self.retention)

    def _together(self, action: Any) -> list[Any]:
        """Runs `action` on all ranks and returns the results of all.

        Raises:
            CheckpointError: it failed on a rank; then all ranks raise. It is a StoreAwayError if a
                store did not answer.
        """
        result: Any = None
        failure: CheckpointError | None = None
        try:
            result = action()
        except Exception as error:
            kind = StoreAwayError if isinstance(error, UnreachableError) else CheckpointError
            failure = kind(f"rank {dist.get_global_rank()}: {error}")
        outcomes = self._group.gather((result, failure))
        for _, failed in outcomes:
            if failed is not None:
                raise failed
        return [value for value, _ in outcomes]


@contextmanager
def _spool(url: str) -> Iterator[Path]:
    """A temporary folder for files before upload. For a local target it is on the same disk, so
    that files are only renamed.
    """
    parent = None
    if not storage.is_remote(url):
        parent = storage.local_path(url)
        parent.mkdir(parents=True, exist_ok=True)
    room = Path(tempfile.mkdtemp(prefix=_SPOOL, dir=parent))
    try:
        yield room
    finally:
        shutil.rmtree(room, ignore_errors=True)
