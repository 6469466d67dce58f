# SPDX-License-Identifier: Apache-2.0
"""Lists the checkpoints in a folder and tells which of them are whole."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ahpa_scale import storage, typed_json
from ahpa_scale.checkpoint.best import BEST, read_best
from ahpa_scale.checkpoint.errors import CheckpointError
from ahpa_scale.checkpoint.manifest import MANIFEST, Manifest
from ahpa_scale.errors import UserError

LATEST = "latest"
#: Name endings of other programs' checkpoints. They hold pickles, so they are never read.
_OTHERS = (".pt", ".pt.symlink", ".distcp", ".metadata")
_NAME = re.compile(r"ba(\d+)", re.ASCII)


@dataclass(frozen=True)
class StoredCheckpoint:
    """A folder that is a checkpoint, or was meant to become one.

    Attributes:
        url: path or URL of the folder.
        name: name of the folder, such as ``ba4000``.
        batch: batches trained.
        sizes: bytes of each file that is there, by name.
        manifest: the manifest; None if it is missing or damaged.
        problem: what is wrong, judged by manifest, names and sizes; None if nothing is.
        begun: there is no manifest, so the upload did not finish.
        best: the run's note says that it has the lowest held-out loss.
    """

    url: str
    name: str
    batch: int
    sizes: dict[str, int]
    manifest: Manifest | None
    problem: str | None
    begun: bool
    best: bool = False


def checkpoint_name(batch: int) -> str:
    """The folder name of the checkpoint after `batch` batches."""
    return f"ba{batch}"


def list_checkpoints(folder: str) -> list[StoredCheckpoint]:
    """All checkpoints below a folder or URL, oldest first.

    Raises:
        OSError: the store can't be reached.
        UserError: an unknown scheme.
    """
    return _below(folder, storage.find(folder))


def checkpoints_at(url: str) -> list[StoredCheckpoint]:
    """The checkpoint at `url`, whole or not. For a folder of checkpoints: all, oldest first.

    Raises:
        OSError: the store can't be reached.
        UserError: an unknown scheme.
    """
    sizes = storage.find(url)
    below = _below(url, sizes)
    named = _NAME.fullmatch(url.rstrip("/").rsplit("/", 1)[-1])
    if MANIFEST in sizes or (named and sizes and not below):
        return [look_at(url, sizes)]
    return below


def some_checkpoints_at(url: str) -> list[StoredCheckpoint]:
    """Like `checkpoints_at`, for commands that need at least one.

    Raises:
        UserError: there are none. If some lie in ``checkpoints`` below, the message says so.
        OSError: the store can't be reached.
    """
    checkpoints = checkpoints_at(url)
    if not checkpoints:
        below = storage.join(url, "checkpoints")
        advice = f"; there are some in {below}" if checkpoints_at(below) else ""
        raise UserError(f"there is no checkpoint at {url}{advice}")
    return checkpoints


def _below(folder: str, sizes: Mapping[str, int]) -> list[StoredCheckpoint]:
    by_name: dict[str, dict[str, int]] = defaultdict(dict)
    for path, size in sizes.items():
        name, _, rest = path.partition("/")
        if rest and _NAME.fullmatch(name):
            by_name[name][rest] = size
    ordered = sorted(by_name, key=lambda name: int(name[2:]))
    found = [look_at(storage.join(folder, name), by_name[name]) for name in ordered]
    best = read_best(folder) if BEST in sizes else None
    if best is None:
        return found
    return [replace(each, best=True) if each.batch == best.batch else each for each in found]


def look_at(url: str, sizes: dict[str, int]) -> StoredCheckpoint:
    """Judges one checkpoint by its manifest and the sizes of its files."""
    name = url.rstrip("/").rsplit("/", 1)[-1]
    match = _NAME.fullmatch(name)
    batch = int(match[1]) if match else -1
    if MANIFEST not in sizes:
        return StoredCheckpoint(url, name, batch, sizes, None, f"{MANIFEST} is missing", begun=True)
    if sizes[MANIFEST] > typed_json.LIMIT:
        return StoredCheckpoint(
            url, name, batch, sizes, None, f"{MANIFEST} is too large", begun=False
        )
    try:
        manifest = _manifest(storage.join(url, MANIFEST))
    except FileNotFoundError:  # removed since it was listed
        return StoredCheckpoint(url, name, batch, sizes, None, f"{MANIFEST} is missing", begun=True)
    except CheckpointError as error:
        return StoredCheckpoint(url, name, batch, sizes, None, str(error), begun=False)
    problem = manifest.misfit(sizes)
    if match and manifest.batch != batch:
        problem = f"{MANIFEST} is that of {checkpoint_name(manifest.batch)}"
    return StoredCheckpoint(
        url, name, batch if match else manifest.batch, sizes, manifest, problem, False
    )


def _manifest(where: str) -> Manifest:
    try:
        return Manifest.from_json(storage.read_bytes(where))
    except CheckpointError:
        # If the connection damaged the first read, the second one is whole.
        return Manifest.from_json(storage.read_bytes(where))


def trace_of_checkpoints(folder: str) -> str | None:
    """A file that proves that a run has saved below a folder, even without a whole checkpoint: our
    ``latest``, or a file that Composer's or torch's own savers write.

    Raises:
        OSError: the store can't be reached.
    """
    names = storage.find(folder)
    return next((name for name in sorted(names) if name == LATEST or name.endswith(_OTHERS)), None)


def holds_checkpoints(folder: str) -> bool:
    """Whether a run has saved there. An unfinished upload counts too."""
    return bool(list_checkpoints(folder))


def find_checkpoint(url: str) -> StoredCheckpoint:
    """The checkpoint at `url`, or the newest whole checkpoint in the folder `url`.

    Raises:
        CheckpointError: there is none, or the checkpoint at `url` is not whole.
        OSError: the store can't be reached.
    """
    sizes = storage.find(url)
    if MANIFEST in sizes:
        checkpoint = look_at(url, sizes)
        if checkpoint.problem is not None:
            raise CheckpointError(f"{url}: {checkpoint.problem}")
        return checkpoint
    whole = [checkpoint for checkpoint in list_checkpoints(url) if checkpoint.problem is None]
    if not whole:
        raise CheckpointError(f"{url} is no checkpoint and holds none that is whole")
    return whole[-1]
