# SPDX-License-Identifier: Apache-2.0
"""Reads files of `torch.save` without executing their pickle, and without trusting their sizes.

Such a file is a zip archive of ``NAME/data.pkl`` and one entry ``NAME/data/KEY`` for each storage
(torch's `serialization.py`, since version 1.6). `torch.load` is not used: its ``weights_only``
could be led to execute code in torch 2.7 (CVE-2026-24747).
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ahpa_scale.errors import UserError
from ahpa_scale.interchange.pickle_machine import DROPPED, Builder, Dropped, Name
from ahpa_scale.interchange.pickles import LIMIT, read_pickle

_MAGIC = b"PK\x03\x04"
#: What `zipfile` raises, besides its own error, for bytes that are no archive.
_DAMAGED = (EOFError, NotImplementedError, UnicodeDecodeError, struct.error)
_MOST_ENTRIES = 1_000_000
_MOST_DIMENSIONS = 64
#: A tensor may repeat its storage's elements, as an expanded one does, up to this many.
_MOST_REPEATED = 1 << 20

_DTYPES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexDoubleStorage": torch.complex128,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.storage.UntypedStorage": torch.uint8,
}
#: Dtypes that have no storage class of their own.
_NEW_DTYPES = {
    f"torch.{name}": getattr(torch, name)
    for name in (
        *("uint16", "uint32", "uint64", "complex32"),
        *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"),
    )
    if hasattr(torch, name)
}


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is still in its file.

    Attributes:
        shape, stride, offset: in elements.
        storage: which bytes it lies in.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    storage: _Storage
    _memory: Callable[[str], torch.UntypedStorage] = field(repr=False, compare=False)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its elements."""
        return self.storage.dtype

    def load(self) -> Tensor:
        """The tensor, while the file is open. It shares memory with those that it did when it was
        saved.

        Raises:
            UserError: the file is damaged.
        """
        memory = self._memory(self.storage.key)
        empty = torch.empty(0, dtype=self.storage.dtype)
        return empty.set_(memory, self.offset, self.shape, self.stride)


@dataclass(frozen=True)
class TorchFile:
    """What a file of `torch.save` holds.

    Attributes:
        value: containers, numbers, text and `StoredTensor`.
        dropped: how many objects of which class were dropped.
    """

    value: Any
    dropped: Counter[str]


@contextmanager
def open_torch_file(path: Path, where: str) -> Iterator[TorchFile]:
    """Opens a file of `torch.save`. Only tensors that are loaded are read.

    Args:
        path: a local file.
        where: its name in messages.

    Raises:
        UserError: it is no such file, it is damaged, or it was written before torch 1.6.
    """
    with path.open("rb") as file:
        begin = file.read(len(_MAGIC))
    if begin != _MAGIC:
        raise UserError(
            f"{where} is no file of torch.save, or one from before torch 1.6: save it again with "
            "today's torch"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            yield _Archive(archive, path.stat().st_size, where).read()
    except (*_DAMAGED, zipfile.BadZipFile) as error:
        raise UserError(f"{where} is a damaged zip archive: {error}") from None


class _Archive:
    """An open archive, the storages that were read from it, and the builders of its tensors."""

    def __init__(self, archive: zipfile.ZipFile, size: int, where: str) -> None:
        self._archive, self._where = archive, where
        self._entries = self._checked(archive.infolist(), size)
        pickles = [name for name in self._entries if name.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise UserError(f"{where} is no file of torch.save: it has no data.pkl")
        self._prefix = pickles[0].removesuffix("data.pkl")
        self._read: dict[str, torch.UntypedStorage] = {}

    def read(self) -> TorchFile:
        """The content."""
        order = f"{self._prefix}byteorder"
        if order in self._entries and self._bytes(order, 16) != b"little":
            raise UserError(f"{self._where} was saved by a machine of another byte order")
        builders: dict[str, Builder] = {
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_tensor_v3": self._tensor_of_dtype,
            "torch._utils._rebuild_parameter": _parameter,
            "collections.OrderedDict": _ordered,
            "torch.Size": _size,
        }
        content = self._bytes(f"{self._prefix}data.pkl", LIMIT)
        plain = read_pickle(content, self._where, builders, self._storage, ["argparse.Namespace"])
        return TorchFile(plain.value, plain.dropped)

    def _checked(self, entries: list[zipfile.ZipInfo], size: int) -> dict[str, zipfile.ZipInfo]:
        """The entries by name. Together they can't be larger than the file."""
        named = {entry.filename: entry for entry in entries}
        problem = None
        if len(entries) > _MOST_ENTRIES:
            problem = f"has {len(entries)} entries"
        elif len(named) != len(entries):
            problem = "has two entries of one name"
        elif any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            problem = "is compressed, which torch.save never does"
        elif any(entry.file_size != entry.compress_size for entry in entries):
            problem = "has an entry of two sizes"
        elif any(not 0 <= entry.header_offset < size for entry in entries):
            problem = "has an entry that lies outside of it"
        elif sum(entry.file_size for entry in entries) > size:
            problem = "has entries that are larger than the file"
        elif any(entry.flag_bits & 1 for entry in entries):
            problem = "is encrypted"
        if problem is not None:
            raise UserError(f"{self._where} is no file of torch.save: it {problem}")
        return named

    def _bytes(self, name: str, limit: int | None = None) -> bytes:
        entry = self._entries[name]
        if limit is not None and entry.file_size > limit:
            raise UserError(f"{self._where}: {name} has {entry.file_size} bytes, too many")
        content = self._archive.read(entry)  # checks the CRC
        if len(content) != entry.file_size:
            raise UserError(f"{self._where}: {name} is cut short")
        return content

    def _storage(self, told: Any) -> _Storage:
        """Of torch's persistent id: ('storage', class, key, device, number of elements)."""
        if not isinstance(told, tuple) or len(told) != 5 or told[0] != "storage":
            raise self._strange("a persistent id")
        _, kind, key, _, numel = told
        dtype = _DTYPES.get(kind.text) if isinstance(kind, Name) else None
        if dtype is None or not isinstance(key, str) or not _is_count(numel):
            raise self._strange("a storage")
        entry = self._entries.get(f"{self._prefix}data/{key}")
        if entry is None:
            raise UserError(f"{self._where} is damaged: it lacks the storage {key!r:.40}")
        if numel * dtype.itemsize > entry.file_size:
            raise UserError(
                f"{self._where} is damaged: the storage {key!r:.40} has {entry.file_size} bytes "
                f"instead of {numel * dtype.itemsize}"
            )
        return _Storage(key, dtype, numel)

    def _tensor(self, arguments: tuple[Any, ...]) -> StoredTensor:
        """Of `_rebuild_tensor_v2`: storage, offset, size, stride, and what is not needed."""
        if len(arguments) not in (6, 7):
            raise self._strange("a tensor")
        return self._view(*arguments[:4])

    def _tensor_of_dtype(self, arguments: tuple[Any, ...]) -> StoredTensor | Dropped:
        """Of `_rebuild_tensor_v3`, whose storage has no dtype; the tensor's own is the seventh."""
        if len(arguments) not in (7, 8):
            raise self._strange("a tensor")
        dtype = arguments[6]
        if not isinstance(dtype, Name) or not isinstance(arguments[0], _Storage):
            raise self._strange("a tensor")
        known = _NEW_DTYPES.get(dtype.text)
        if known is None:
            return DROPPED
        told = arguments[0]
        count = told.numel * told.dtype.itemsize // known.itemsize
        return self._view(_Storage(told.key, known, count), *arguments[1:4])

    def _view(self, storage: Any, offset: Any, size: Any, stride: Any) -> StoredTensor:
        shaped = isinstance(size, tuple) and isinstance(stride, tuple)
        if not isinstance(storage, _Storage) or not shaped or not _is_count(offset):
            raise self._strange("a tensor")
        if len(size) != len(stride) or len(size) > _MOST_DIMENSIONS:
            raise self._strange("a tensor's shape")
        if not all(map(_is_count, (*size, *stride))):
            raise self._strange("a tensor's shape")
        count = math.prod(size)
        steps = sum((side - 1) * step for side, step in zip(size, stride, strict=True))
        beyond = count > 0 and offset + steps >= storage.numel
        if beyond or offset > storage.numel or count > max(storage.numel, _MOST_REPEATED):
            raise UserError(
                f"{self._where} is damaged: a tensor reaches beyond its storage "
                f"{storage.key!r:.40} of {storage.numel} elements"
            )
        return StoredTensor(size, stride, offset, storage, self._memory)

    def _memory(self, key: str) -> torch.UntypedStorage:
        """The bytes of a storage, read once."""
        if key not in self._read:
            content = bytearray(self._bytes(f"{self._prefix}data/{key}"))
            raw = torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0)
            self._read[key] = raw.untyped_storage()
        return self._read[key]

    def _strange(self, what: str) -> UserError:
        return UserError(f"{self._where} is damaged: it has {what} that torch.save never writes")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _parameter(arguments: tuple[Any, ...]) -> Any:
    return arguments[0] if arguments else DROPPED


def _ordered(arguments: tuple[Any, ...]) -> dict[Any, Any] | Dropped:
    return {} if not arguments else DROPPED


def _size(arguments: tuple[Any, ...]) -> Any:
    whole = len(arguments) == 1 and isinstance(arguments[0], tuple)
    return arguments[0] if whole else DROPPED
