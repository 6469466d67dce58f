# SPDX-License-Identifier: Apache-2.0
"""Reads and writes safetensors files, with clear errors."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ahpa_scale import storage
from ahpa_scale.errors import UserError

#: The system's error number in the library's message.
_ERRNO = re.compile(r"\bos error (\d+)")


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file.

    Args:
        tensors: by name, each contiguous and in memory of its own.
        path: the file; it is not written atomically.
        metadata: texts by name, for its header.

    Raises:
        OSError: the disk refused; its errno is the system's.
    """
    try:
        save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
    except SafetensorError as error:
        match = _ERRNO.search(str(error))
        if match is None:
            raise
        raise OSError(int(match[1]), os.strerror(int(match[1])), str(path)) from None


def write_safetensors(
    tensors: Mapping[str, Tensor], out: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file whole or not at all; an existing one is replaced.

    Args:
        tensors: by name.
        out: the file; missing folders are made.
        metadata: texts by name, for its header.

    Raises:
        OSError: the disk refused.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as room:
        # Some loaders refuse files without ``format``, the library that wrote the tensors.
        own = {name: value.contiguous() for name, value in tensors.items()}
        save_tensors(own, Path(room, out.name), {**(metadata or {}), "format": "pt"})
        storage.put_file(Path(room, out.name), out)


def read_safetensors(file: Path, where: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, in memory of their own, and the texts of its header.

    Args:
        file: a local file.
        where: its name in messages.

    Raises:
        UserError: it is no safetensors file, or a damaged one.
    """
    try:
        with safe_open(str(file), framework="pt") as opened:
            facts: dict[str, str] = opened.metadata() or {}
        # Cloned, because the file may be removed while it is mapped into memory.
        return {name: value.clone() for name, value in load_file(file).items()}, facts
    except SafetensorError as error:
        raise UserError(f"{where} is no safetensors file: {error}") from None
