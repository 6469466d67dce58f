# SPDX-License-Identifier: Apache-2.0
"""What lies in a folder of checkpoints: which of them are whole."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from ahpa_scale import storage, typed_json
from ahpa_scale.checkpoint.errors import CheckpointError
from ahpa_scale.checkpoint.manifest import MANIFEST, Manifest
from ahpa_scale.errors import UserError

LATEST = "latest"
#: What others' checkpoints end with; they are never read, as they hold pickles.
_OTHERS = (".pt", ".pt.symlink", ".distcp", ".metadata")
_NAME = re.compile(r"ba(\d+)", re.ASCII)


@dataclass(frozen=True)
class Found:
    """A folder that is, or was to become, a checkpoint.

    Attributes:
        url: of the folder.
        name: such as ``ba4000``.
        batch: batches trained.
        sizes: bytes of the files that are there, by name.
        manifest: None where there is none, or a damaged one.
        problem: what is wrong with it as far as names and sizes tell; None if nothing is.
        begun: no manifest was ever written: an upload that did not come to its end.
    """

    url: str
    name: str
    batch: int
    sizes: dict[str, int]
    manifest: Manifest | None
    problem: str | None
    begun: bool


def checkpoint_name(batch: int) -> str:
    """The folder's name of the checkpoint after so many batches."""
    return f"ba{batch}"


def list_checkpoints(folder: str) -> list[Found]:
    """All checkpoints below a folder or URL, oldest first.

    Raises:
        OSError: the store can't be reached.
        UserError: an unknown scheme.
    """
    return _below(folder, storage.find(folder))


def checkpoints_at(url: str) -> list[Found]:
    """The checkpoint at `url`, whole or not; where `url` is a folder of them, all, oldest first.

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


def some_checkpoints_at(url: str) -> list[Found]:
    """As `checkpoints_at`, for commands that need at least one.

    Raises:
        UserError: there are none; the line says where some are, if they lie a folder below.
        OSError: the store can't be reached.
    """
    found = checkpoints_at(url)
    if not found:
        below = storage.join(url, "checkpoints")
        advice = f"; there are some in {below}" if checkpoints_at(below) else ""
        raise UserError(f"there is no checkpoint at {url}{advice}")
    return found


def _below(folder: str, sizes: Mapping[str, int]) -> list[Found]:
    by_name: dict[str, dict[str, int]] = defaultdict(dict)
    for path, size in sizes.items():
        name, _, rest = path.partition("/")
        if rest and _NAME.fullmatch(name):
            by_name[name][rest] = size
    ordered = sorted(by_name, key=lambda name: int(name[2:]))
    return [look_at(storage.join(folder, name), by_name[name]) for name in ordered]


def look_at(url: str, sizes: dict[str, int]) -> Found:
    """Judges one checkpoint by its manifest and its files' sizes."""
    name = url.rstrip("/").rsplit("/", 1)[-1]
    match = _NAME.fullmatch(name)
    batch = int(match[1]) if match else -1
    if MANIFEST not in sizes:
        return Found(url, name, batch, sizes, None, f"{MANIFEST} is missing", begun=True)
    if sizes[MANIFEST] > typed_json.LIMIT:
        return Found(url, name, batch, sizes, None, f"{MANIFEST} is too large", begun=False)
    try:
        manifest = _manifest(storage.join(url, MANIFEST))
    except FileNotFoundError:  # removed this very moment
        return Found(url, name, batch, sizes, None, f"{MANIFEST} is missing", begun=True)
    except CheckpointError as error:
        return Found(url, name, batch, sizes, None, str(error), begun=False)
    problem = manifest.misfit(sizes)
    if match and manifest.batch != batch:
        problem = f"{MANIFEST} is that of {checkpoint_name(manifest.batch)}"
    return Found(url, name, batch if match else manifest.batch, sizes, manifest, problem, False)


def _manifest(where: str) -> Manifest:
    try:
        return Manifest.from_json(storage.read_bytes(where))
    except CheckpointError:
        # What a connection spoils is whole the second time.
        return Manifest.from_json(storage.read_bytes(where))


def trace_of_checkpoints(folder: str) -> str | None:
    """A file which tells that a run has saved below a folder, where no whole checkpoint does: what
    says which one was the last, or what Composer's and torch's own savers write.

    Raises:
        OSError: the store can't be reached.
    """
    names = storage.find(folder)
    return next((one for one in sorted(names) if one == LATEST or one.endswith(_OTHERS)), None)


def holds_checkpoints(folder: str) -> bool:
    """Whether a run has saved there; half an upload counts too."""
    return bool(list_checkpoints(folder))


def find_checkpoint(url: str) -> Found:
    """The checkpoint at `url`, or the newest whole one of the folder `url`.

    Raises:
        CheckpointError: there is none, or the one named is not whole.
        OSError: the store can't be reached.
    """
    sizes = storage.find(url)
    if MANIFEST in sizes:
        found = look_at(url, sizes)
        if found.problem is not None:
            raise CheckpointError(f"{url}: {found.problem}")
        return found
    whole = [one for one in list_checkpoints(url) if one.problem is None]
    if not whole:
        raise CheckpointError(f"{url} is no checkpoint and holds none that is whole")
    return whole[-1]
