# SPDX-License-Identifier: Apache-2.0
"""Writes safetensors files, and raises a disk's errors as OSError."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

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
