# SPDX-License-Identifier: Apache-2.0
"""The manifest makes a folder of files a checkpoint. It is written last, lists each file with size
and hash, and describes the run.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ahpa_scale import typed_json
from ahpa_scale.checkpoint.errors import CheckpointError
from ahpa_scale.errors import UserError

MANIFEST = "manifest.json"
STATE = "state.json"
FORMAT = "ahpa-scale checkpoint 1"
_CHUNK = 1 << 22
_Count = Annotated[int, Field(ge=0, lt=1 << 63)]
_FILE = re.compile(r"\w[\w.-]*", re.ASCII)


@dataclass(frozen=True)
class FileEntry:
    """One file of a checkpoint: its size in bytes and its SHA-256 in hex."""

    __pydantic_config__ = typed_json.STRICT

    size: _Count
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Describes a checkpoint.

    Attributes:
        batch: batches trained.
        num_images: images seen.
        epoch: completed passes over the data.
        created: time in UTC, ISO 8601.
        run_name: as configured.
        engine: parallel engine that saved it.
        world_size: ranks that saved it.
        versions: versions of this package, torch and Composer.
        data: position in the data, as the data set reports it; None without a data set.
        config: the resolved configuration.
        loggers: ids under which trackers know the run.
        files: the files, by name.
        run_id: id of the run, shared by all its checkpoints; empty if an older version saved this.
        data_set: identity of the data set, see `data.identity.identity`; None if an older version
            saved the checkpoint.
    """

    __pydantic_config__ = typed_json.STRICT

    batch: _Count
    num_images: _Count
    epoch: _Count
    created: str
    run_name: str
    engine: str
    world_size: _Count
    versions: dict[str, str]
    data: dict[str, Any] | None
    config: dict[str, Any]
    loggers: dict[str, str]
    files: dict[str, FileEntry] = field(default_factory=dict)
    run_id: str = ""
    data_set: dict[str, Any] | None = None

    @property
    def total_bytes(self) -> int:
        """Size of all files."""
        return sum(entry.size for entry in self.files.values())

    def to_json(self) -> str:
        """JSON with a hash of its own content, so that a flipped bit in it is noticed."""
        content: dict[str, Any] = {"format": FORMAT}
        content |= {attribute.name: getattr(self, attribute.name) for attribute in fields(self)}
        content["files"] = {name: vars(entry) for name, entry in self.files.items()}
        return json.dumps({**content, "sha256": _digest(content)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Reads what `to_json` wrote.

        Raises:
            CheckpointError: the text is damaged or has another format.
        """
        try:
            content = typed_json.parse(text, MANIFEST)
        except UserError:
            raise CheckpointError(f"{MANIFEST} is damaged") from None
        if not isinstance(content, dict):
            raise CheckpointError(f"{MANIFEST} is damaged")
        told = content.pop("sha256", None)
        if content.get("format") != FORMAT:
            raise CheckpointError(f"{MANIFEST} is of format {content.get('format')!r:.40}")
        if told != _digest(content):
            raise CheckpointError(f"{MANIFEST} is damaged")
        del content["format"]
        try:
            manifest = typed_json.fit(cls, content, MANIFEST)
        except UserError as error:
            raise CheckpointError(f"{MANIFEST} is damaged ({error})") from None
        # The hash does not stop an attacker. A file name must not lead a copy out of its folder.
        strange = next((name for name in manifest.files if not _FILE.fullmatch(name)), None)
        if strange is not None:
            raise CheckpointError(f"{MANIFEST} names {strange!r:.60}, which is no file's name")
        return manifest

    def misfit(self, sizes: Mapping[str, int]) -> str | None:
        """What is wrong with the files there, judged by name and size; None if nothing is."""
        for name, entry in self.files.items():
            if name not in sizes:
                return f"{name} is missing"
            if sizes[name] != entry.size:
                return f"{name} has {sizes[name]} bytes instead of {entry.size}"
        return None


def entry_of(path: Path, moved: Callable[[int], None] | None = None) -> FileEntry:
    """Size and hash of a local file. `moved` is called with the number of bytes read so far."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK))
    size = 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            size += count
            if moved is not None:
                moved(size)
    return FileEntry(size, digest.hexdigest())


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
