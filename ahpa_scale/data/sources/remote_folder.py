# SPDX-License-Identifier: Apache-2.0
"""Picture files below a URL of a store; their classes as those of a local folder.

Shapes: N pictures.
"""

from __future__ import annotations

import io
from typing import BinaryIO

import numpy as np

from ahpa_scale import storage
from ahpa_scale.data.pictures.decode import MOST_BYTES, SUFFIXES
from ahpa_scale.data.pictures.listing import KINDS, LeftOut, is_hidden, suffix_of
from ahpa_scale.data.sources.base import SourceOptions
from ahpa_scale.data.sources.folder import (
    class_names,
    depth_of,
    metadata_of,
    sorted_by_class,
    with_unnamed,
)
from ahpa_scale.errors import UserError


class RemoteFolder:
    """A folder in a store, see `Collection`. It is listed once; each picture is one request.

    Args:
        place: URL of the folder.
        options: `class_depth` and `label_column` are used.
        sizes: bytes of each file by its path in the folder, as `storage.find` gives them.

    Raises:
        UserError: no pictures, no classes, or a metadata file that can't be used.
    """

    stamp = ""

    def __init__(self, place: str, options: SourceOptions, sizes: dict[str, int]) -> None:
        self.place = place
        folder = place.rstrip("/").rpartition("/")[2]
        self.description = f"folder {folder}"
        metadata = metadata_of(place, options)
        depth = depth_of(options) if metadata is None else 0
        by_class, left_out = _by_class(sizes, depth)
        if not by_class:
            raise UserError(
                f"{place} holds no pictures ({KINDS})"
                + f" in {depth} levels of folders" * (depth > 0)
            )
        classes = sorted(by_class)
        self.classes: tuple[str, ...] | None = class_names(classes, folder)
        self._names = [name for each in classes for name in by_class[each]]
        self.labels_N = np.repeat(
            np.arange(len(classes)), [len(by_class[each]) for each in classes]
        )
        self.left_out = left_out.told()
        if metadata is not None:
            self.classes, self._names, self.labels_N, unnamed = sorted_by_class(
                metadata, self._names
            )
            self.left_out = with_unnamed(self.left_out, unnamed)
        self._sizes_N = np.array([sizes.get(name, -1) for name in self._names], np.int64)

    def name(self, position: int) -> str:
        """Path of a picture below the folder."""
        return self._names[position]

    def size_of(self, position: int) -> int:
        """Bytes of a picture; -1 if it is not there."""
        return int(self._sizes_N[position])

    def open(self, position: int) -> BinaryIO:
        """Fetches the picture."""
        size = self.size_of(position)
        if size > MOST_BYTES:
            raise ValueError(f"it has {size} bytes, and may have 1 to {MOST_BYTES}")
        return io.BytesIO(storage.read_bytes(storage.join(self.place, self._names[position])))


def _by_class(sizes: dict[str, int], depth: int) -> tuple[dict[str, list[str]], LeftOut]:
    """Sorted names of the pictures of each class, and what else is there."""
    by_class: dict[str, list[str]] = {}
    left_out = LeftOut()
    for name in sorted(sizes):
        parts = name.split("/")
        if any(map(is_hidden, parts)):
            left_out["hidden"] += 1
        elif len(parts) <= depth:
            left_out[f"{suffix_of(name)} beside the class folders"] += 1
        elif suffix_of(name) not in SUFFIXES:
            left_out[suffix_of(name) or "without a suffix"] += 1
        else:
            by_class.setdefault(parts[depth - 1] if depth else "", []).append(name)
    return by_class, left_out
