# SPDX-License-Identifier: Apache-2.0
"""Reads tensors by name from a checkpoint on a local disk, whatever engine saved it.

Each rank's file is a safetensors file with entries named ``<tensor>@<first element>``. Its header
is the only index. Safetensors and JSON hold no code.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ahpa_scale import storage, typed_json
from ahpa_scale.checkpoint.errors import CheckpointError
from ahpa_scale.checkpoint.manifest import MANIFEST, STATE, Manifest
from ahpa_scale.checkpoint.plain import decode
from ahpa_scale.errors import UserError

RANK_FILES = "rank*.safetensors"
_FIRST = re.compile(r"[0-9]{1,18}")
_Shapes = dict[str, tuple[Annotated[int, Field(strict=True, ge=0)], ...]]
#: Key in a rank file's metadata. It holds the state that only this rank has.
RANK_STATE = "rank_state"


def rank_file(rank: int) -> str:
    """The name of a rank's file."""
    return f"rank{rank:05d}.safetensors"


@dataclass(frozen=True)
class _Stored:
    first: int
    numel: int
    file: Any
    key: str


class Reader:
    """Reads a checkpoint on a local disk. Use it as a context manager.

    Args:
        folder: folder of one checkpoint, already verified. Files that the manifest does not name
            are not read: an earlier attempt to save it, on more ranks, may have left them.

    Raises:
        CheckpointError: a file is not valid safetensors or JSON.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()
        self._stored: dict[str, list[_Stored]] = defaultdict(list)
        try:
            self._files = Manifest.from_json(self._content(MANIFEST)).files
            for name in sorted(self._files):
                if fnmatch(name, RANK_FILES):
                    self._index(name)
            content = typed_json.parse(self._content(STATE), STATE)
            if not isinstance(content, dict) or not {"shapes", "state"} <= content.keys():
                raise UserError(f"{STATE} lacks shapes or state")
            self.shapes = typed_json.fit(_Shapes, content["shapes"], STATE)
            self._state = content["state"]
        except UserError as error:
            self._stack.close()
            raise CheckpointError(f"it can't be read ({error!s:.300})") from None
        for stored in self._stored.values():
            stored.sort(key=lambda entry: entry.first)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def names(self, prefix: str) -> list[str]:
        """Names of the tensors that begin with `prefix`, sorted, without the prefix."""
        return sorted(n.removeprefix(prefix) for n in self.shapes if n.startswith(prefix))

    def dtype(self, name: str) -> torch.dtype:
        """The dtype in which a tensor was saved."""
        if not self._stored.get(name):
            raise CheckpointError(f"it lacks all elements of {name!r}")
        some = self._stored[name][0]
        dtype: torch.dtype = some.file.get_slice(some.key)[0:0].dtype
        return dtype

    def stretch(self, name: str, first: int, numel: int) -> Tensor:
        """Elements ``[first, first + numel)`` of a whole, flattened tensor: ``[numel]``.

        Raises:
            CheckpointError: the checkpoint lacks some of these elements.
        """
        parts = list(self._overlaps(name, first, first + numel))
        present = sum(len(part) for part in parts)
        if present != numel:
            raise CheckpointError(f"it lacks {numel - present} of {numel} elements of {name!r}")
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def whole(self, name: str) -> Tensor:
        """A whole tensor in its own shape."""
        shape = self.shapes[name]
        return self.stretch(name, 0, math.prod(shape)).view(shape)

    def state(self) -> dict[str, Any]:
        """The state that all ranks share: clocks, schedules, algorithms and callbacks."""
        prefix = "state/"
        tensors = {prefix + name: self.whole(prefix + name) for name in self.names(prefix)}
        state: dict[str, Any] = decode(self._state, tensors)
        return state

    def rank_state(self, rank: int) -> dict[str, Any] | None:
        """The state that only one rank has; None if there was no such rank."""
        if rank_file(rank) not in self._files:
            return None
        with self._open(rank_file(rank)) as file:
            keys = (key for key in _keys(file) if key.startswith(f"rank{rank}/"))
            tensors = {key.rpartition("@")[0]: file.get_tensor(key) for key in keys}
            told = (file.metadata() or {}).get(RANK_STATE, "")
        try:
            state: dict[str, Any] = decode(typed_json.parse(told, rank_file(rank)), tensors)
        except UserError as error:
            raise CheckpointError(f"it can't be read ({error})") from None
        return state

    def _content(self, name: str) -> bytes:
        try:
            return storage.read_bytes(self.folder / name, typed_json.LIMIT)
        except OSError as error:
            raise CheckpointError(f"{name}: {error}") from None

    def _open(self, name: str) -> Any:
        try:
            return safe_open(str(self.folder / name), framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{name}: {error}") from None

    def _index(self, file_name: str) -> None:
        file = self._stack.enter_context(self._open(file_name))
        for key in _keys(file):
            name, _, first = key.rpartition("@")
            shape = file.get_slice(key).get_shape()
            if len(shape) != 1 or not _FIRST.fullmatch(first):
                raise CheckpointError(f"{file_name} has an entry {key!r:.80}, which is no stretch")
            self._stored[name].append(_Stored(int(first), shape[0], file, key))

    def _overlaps(self, name: str, start: int, end: int) -> Iterator[Tensor]:
        stored = self._stored.get(name, [])
        if start == end and stored:
            yield stored[0].file.get_slice(stored[0].key)[0:0]
            return
        position = max(bisect_right(stored, start, key=lambda entry: entry.first) - 1, 0)
        for entry in stored[position:]:
            first = entry.first
            low, high = max(start, first), min(end, first + entry.numel)
            if low < high:
                values: Tensor = entry.file.get_slice(entry.key)[low - first : high - first]
                yield values
            start = max(start, high)
            if first >= end:
                return


def _keys(file: Any) -> list[str]:
    keys: list[str] = file.keys()
    return keys
