# SPDX-License-Identifier: Apache-2.0
"""Arrays of an `.npz` without loading them: mapped where they are, or from an unpacked copy."""

from __future__ import annotations

import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ahpa_scale.errors import UserError

#: Bytes of a zip member's own header, before its name.
_ZIP_HEADER = 30
#: What zipfile and numpy raise on damaged files.
_BROKEN = (
    *(ValueError, KeyError, AttributeError, TypeError, EOFError, RuntimeError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, SyntaxError, OverflowError),
)


class ArrayFile:
    """An `.npz`. Nothing is unpickled. Compressed arrays are unpacked to a folder that goes with
    the object.

    Args:
        path: the file.
        place: what the user named, for messages.

    Raises:
        UserError: it is no `.npz`.
    """

    def __init__(self, path: Path, place: str) -> None:
        self._path, self._place = path, place
        self._room = tempfile.TemporaryDirectory(prefix="ahpa-scale-")
        try:
            with zipfile.ZipFile(path) as archive:
                self._names = {
                    name[: -len(".npy")] for name in archive.namelist() if name.endswith(".npy")
                }
        except _BROKEN as error:
            raise UserError(f"{place} is no .npz: {error}") from None

    def one_of(self, usual: Sequence[str], wanted: str | None, kind: str) -> NDArray[Any]:
        """The wanted array, or the first of a usual name.

        Raises:
            UserError: it is not there, or can't be read.
        """
        found = self.find((wanted,) if wanted is not None else usual)
        if found is None:
            raise UserError(
                f"{self._place} has no {kind} as {wanted or ' or '.join(usual)}: it holds "
                f"{', '.join(sorted(self._names)) or 'no arrays'}"
            )
        return found

    def find(self, names: Sequence[str]) -> NDArray[Any] | None:
        """The first of these arrays that is there.

        Raises:
            UserError: it can't be read.
        """
        name = next((name for name in names if name in self._names), None)
        if name is None:
            return None
        try:
            return self._mapped(f"{name}.npy")
        except _BROKEN as error:
            raise UserError(f"{self._place}: {name} can't be read: {error}") from None

    def _mapped(self, name: str) -> NDArray[Any]:
        with zipfile.ZipFile(self._path) as archive:
            entry = archive.getinfo(name)
            if entry.compress_type != zipfile.ZIP_STORED:
                unpacked = archive.extract(entry, self._room.name)
                return np.lib.format.open_memmap(unpacked, mode="r")
        with self._path.open("rb") as file:
            file.seek(entry.header_offset)
            header = file.read(_ZIP_HEADER)
            lengths = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
            file.seek(sum(lengths), 1)
            version = np.lib.format.read_magic(file)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, fortran, dtype = read(file)
            offset = file.tell()
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        if not np.prod(shape):
            return np.zeros(shape, dtype)
        order = "F" if fortran else "C"
        return np.memmap(self._path, dtype, "r", offset, shape, order)  # type: ignore[call-overload]
