# SPDX-License-Identifier: Apache-2.0
"""Picture files in a local folder; their classes are sub-folders, or come from a metadata file.

Shapes: N pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ahpa_scale import storage
from ahpa_scale.data.pictures.files import open_regular
from ahpa_scale.data.pictures.listing import KINDS, LeftOut, Listing
from ahpa_scale.data.sources.base import SourceOptions, StoredSource
from ahpa_scale.data.sources.classes import ONE_CLASS, coded
from ahpa_scale.data.sources.metadata import NAMES, read_metadata
from ahpa_scale.data.sources.places import existing_folder
from ahpa_scale.errors import UserError


class Folder:
    """A local folder, see `Collection`. Deeper folders belong to the class that they are in.

    Args:
        place: the folder.
        options: `class_depth` and `label_column` are used.

    Raises:
        UserError: no such folder, no classes, an empty class, or a metadata file that can't be
            used.
    """

    stamp = ""

    def __init__(self, place: str, options: SourceOptions) -> None:
        self._root = existing_folder(place)
        self.place = str(self._root)
        self.description = f"folder {self._root.name}"
        metadata = metadata_of(self.place, options)
        listing = Listing(self._root, depth=depth_of(options) if metadata is None else 0)
        self.size_of_name = listing.size_of
        if metadata is None:
            self.classes: tuple[str, ...] | None = class_names(listing.classes, self._root.name)
            self._names = [name for names in listing.names for name in names]
            self.labels_N = np.repeat(
                np.arange(len(listing.names)), [len(names) for names in listing.names]
            )
            self.left_out = listing.left_out
        else:
            (found,) = listing.names
            self.classes, self._names, self.labels_N, unnamed = sorted_by_class(metadata, found)
            self.left_out = with_unnamed(listing.left_out, unnamed)
        if not self._names:
            raise UserError(f"{self.place} holds no pictures ({KINDS})")

    def name(self, position: int) -> str:
        """Path of a picture below the folder."""
        return self._names[position]

    def size_of(self, position: int) -> int:
        """Bytes of a picture; -1 if there is nothing to read."""
        return self.size_of_name(self._names[position])

    def open(self, position: int) -> BinaryIO:
        """Opens a regular file."""
        return open_regular(self._root / self._names[position])


class FolderSource(StoredSource):
    """Pictures in class sub-folders, by the options of `SourceOptions`.

    Raises:
        UserError: as `Folder`, `StoredSource`.
    """

    def __init__(self, root: str, **options: Any) -> None:
        chosen = SourceOptions(**options)
        super().__init__(Folder(root, chosen), chosen)


def depth_of(options: SourceOptions) -> int:
    """How deep the folders are whose names are the classes."""
    return 1 if options.class_depth is None else options.class_depth


def class_names(names: Sequence[str], folder: str) -> tuple[str, ...]:
    """The classes; if there is only one without a name, it is called as the folder."""
    if list(names) != [""]:
        return tuple(names)
    return (folder,) if folder else ONE_CLASS


def metadata_of(place: str, options: SourceOptions) -> dict[str, str | int] | None:
    """The labels that the folder's metadata file tells; None if there is none, or if the folders'
    names are to be the classes.
    """
    if options.class_depth is not None:
        return None
    there = [name for name in NAMES if storage.exists(storage.join(place, name))]
    if len(there) > 1:
        raise UserError(f"{place} holds {' and '.join(there)}: leave one, or give --class-depth 1")
    if not there and options.label_column is not None:
        raise UserError(f"{place} has no {' or '.join(NAMES)} for --label-column")
    if not there:
        return None
    return read_metadata(storage.join(place, there[0]), options.label_column)


def sorted_by_class(
    labels: dict[str, str | int], found: Sequence[str]
) -> tuple[tuple[str, ...] | None, list[str], NDArray[np.int64], int]:
    """Classes, names and labels, sorted by class and name as those of class folders are; and how
    many pictures were found that have no label.
    """
    classes, labels_N = coded(list(labels.values()))
    order = sorted(zip(labels_N.tolist(), labels, strict=True))
    names = [name for _, name in order]
    sorted_N = np.array([label for label, _ in order], np.int64)
    return classes, names, sorted_N, len(set(found) - set(names))


def with_unnamed(left_out: str | None, unnamed: int) -> str | None:
    """The text of what was left out, with pictures that the metadata file doesn't name."""
    told = LeftOut({"pictures that the metadata file does not name": unnamed}).told()
    return ", ".join(text for text in (told if unnamed else None, left_out) if text) or None
