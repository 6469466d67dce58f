# SPDX-License-Identifier: Apache-2.0
"""Where the members of a tar lie, read from its headers in one pass."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from ahpa_scale import storage
from ahpa_scale.errors import UserError

_BLOCK = 512
#: Most bytes of a member that is read while indexing: labels.
_LABEL_BYTES = 1 << 20
#: Starts of files that are compressed as a whole: gzip, bzip2, xz, zstd.
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


@dataclass(frozen=True)
class Member:
    """A file in a tar.

    Attributes:
        name: its path in the tar.
        offset: its first byte in the tar.
        size: its bytes.
        text: its content, if it was asked for.
    """

    name: str
    offset: int
    size: int
    text: bytes | None = None


def members(place: str, texts: tuple[str, ...]) -> Iterator[Member]:
    """The regular files of a tar, in their order. Memory does not grow with the tar.

    Args:
        place: local path or URL.
        texts: endings of the small members whose content is read, in lower case.

    Raises:
        UserError: it is not there, no tar, compressed, damaged, or ends in the middle.
        OSError: the store can't be reached.
    """
    try:
        opened = storage.open_forwards(place)
    except FileNotFoundError:
        raise UserError(f"no file {place}") from None
    with opened as file:
        if file.read(6).startswith(_COMPRESSED):
            raise UserError(
                f"{place} is compressed, so its pictures can't be read one by one: decompress it"
            )
        file.seek(0)
        try:
            yield from _members(file, texts)
        except (tarfile.TarError, EOFError, ValueError, IndexError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{place} is no whole tar: {error}; copy it again") from None


def _members(file: BinaryIO, texts: tuple[str, ...]) -> Iterator[Member]:
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for entry in tar:
            # tarfile keeps what it has seen.
            tar.members = []  # type: ignore[attr-defined]
            if not entry.isreg() or entry.sparse is not None:
                continue
            text = None
            if entry.name.lower().endswith(texts) and entry.size <= _LABEL_BYTES:
                file.seek(entry.offset_data)
                text = file.read(entry.size)
            yield Member(entry.name, entry.offset_data, entry.size, text)
        # tarfile takes a damaged header, or a cut between two members, for the end.
        file.seek(tar.offset)
        end = file.read(_BLOCK)
    if len(end) < _BLOCK or any(end):
        raise ValueError("it has no end, so a part is missing or damaged")


def label_in_json(text: bytes, keys: tuple[str, ...]) -> str | int | None:
    """The value of the first of these keys in a JSON object, if it can be a label."""
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        return None
    values = [told[key] for key in keys if key in told] if isinstance(told, dict) else []
    value = values[0] if values else None
    return value if isinstance(value, str | int) and not isinstance(value, bool) else None
