# SPDX-License-Identifier: Apache-2.0
"""What a source of pictures is, and the one that reads stored pictures of every kind.

A source is finite and ordered, and gives any picture by its position. Shuffling, shares of several
machines, and going on after an interruption need that; a stream could only be read from its start.

Shapes: N pictures, H W the cropped picture's sides (equal), C feature channels, g the token grid's
side.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from ahpa_scale.data.features import read_features
from ahpa_scale.data.pictures.decode import DecodeOptions, decode_square
from ahpa_scale.data.pictures.files import shown
from ahpa_scale.data.pictures.rejects import Rejects
from ahpa_scale.data.sources.classes import known_classes, labels_of
from ahpa_scale.data.sources.places import existing_folder
from ahpa_scale.errors import UserError

#: Pictures whose sizes are asked for at a time: each waiting question takes memory.
_SIZES_AT_A_TIME = 4096


@dataclass(frozen=True)
class Picture:
    """One cropped picture.

    Attributes:
        name: name in the source: a path below its folder, a tar's member, a row, an index.
        image_HWC: uint8 RGB.
        label: class index.
        external_Cgg: float32 features of another encoder, where the source has them.
        is_first: whether more frames or pages followed, which are left out.
    """

    name: str
    image_HWC: NDArray[np.uint8]
    label: int
    external_Cgg: NDArray[np.float32] | None = None
    is_first: bool = False


class Source(Protocol):
    """A finite, ordered set of pictures; `read` may be called from several threads."""

    classes: tuple[str, ...]
    description: str
    external_channels: int | None

    def __len__(self) -> int: ...

    def read(self, position: int) -> Picture:
        """The picture at this position; UnreadablePictureError if it cannot be read."""
        ...


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Options of every source of stored pictures.

    Attributes:
        size: side of the cropped pictures.
        grid: token grid that external features must have; otherwise unused.
        features: local folder with one `.npy` per picture, under the picture's name.
        shuffle_seed: seed of the pictures' order; it mixes the classes within every shard.
        limit: keep this many pictures of the shuffled order.
        decode: how pictures are read.
        classes_from: a prepared data set whose classes, in their order, these are.
        class_depth: whose name is the class: that of the first folder (1), the second (2), ..., or
            no one's (0: all pictures are of one class). None: as `metadata.csv` or
            `metadata.jsonl` says if it is there, and else the first.
        image_column: column, or ending in a tar, of the pictures; None finds it.
        label_column: column, ending in a tar or key of its JSON, of the labels; None finds it.
    """

    size: int
    grid: int = 1
    features: str | None = None
    shuffle_seed: int = 0
    limit: int | None = None
    decode: DecodeOptions = field(default_factory=DecodeOptions)
    classes_from: str | None = None
    class_depth: int | None = None
    image_column: str | None = None
    label_column: str | None = None


class Collection(Protocol):
    """Stored pictures of one kind, in their own order.

    Attributes:
        place: what the user named.
        description: text for the card.
        classes: class names by label; None if the labels are numbers without names.
        labels_N: int64 labels of all pictures.
        stamp: identifies the content as far as names and sizes of pictures don't.
        left_out: what was not looked at, for the user; None if there is nothing.
    """

    place: str
    description: str
    classes: tuple[str, ...] | None
    labels_N: NDArray[np.int64]
    stamp: str
    left_out: str | None

    def name(self, position: int) -> str:
        """Name of a picture, unique in the collection."""
        ...

    def size_of(self, position: int) -> int:
        """Bytes of a picture; -1 if they are not known without reading it."""
        ...

    def open(self, position: int) -> BinaryIO | NDArray[np.uint8]:
        """The encoded picture; or pixels, uint8 [H, W, 3] or [H, W], if they are stored so.

        Raises:
            OSError, ValueError: it can't be read.
        """
        ...


class StoredSource:
    """Pictures of a collection, shuffled, read by the one decoder and cropped.

    Args:
        collection: where they are stored.
        options: how they are read.

    Raises:
        UserError: no pictures, no labels, a class that `classes_from` lacks, or missing features.
    """

    def __init__(self, collection: Collection, options: SourceOptions) -> None:
        if not len(collection.labels_N):
            raise UserError(f"{collection.place} holds no pictures")
        wanted = known_classes(options.classes_from)
        self.collection = collection
        self.classes, self._labels_N = labels_of(
            collection.classes, collection.labels_N, wanted, collection.place
        )
        self.description = _described(collection.description, options.decode)
        order = list(range(len(collection.labels_N)))
        random.Random(options.shuffle_seed).shuffle(order)
        self._order = np.array(order[: options.limit], np.int64)
        self._options = options
        features = options.features
        self._features = existing_folder(features) if features is not None else None
        self.external_channels: int | None = None
        if self._features is not None:
            self.external_channels = len(self._external(self.name(0)))

    def __len__(self) -> int:
        return len(self._order)

    def name(self, position: int) -> str:
        """Name of the picture at this position."""
        return self.collection.name(int(self._order[position]))

    @property
    def names(self) -> list[str]:
        """Names of the pictures, in order."""
        return [self.name(position) for position in range(len(self))]

    def digests(self, threads: int) -> dict[str, str]:
        """Per class, how many pictures the collection has and a digest of their names and sizes:
        what machines that read the same pictures have in common.
        """
        told = [hashlib.sha256(self.collection.stamp.encode()) for _ in self.classes]
        counts = np.bincount(self._labels_N, minlength=len(self.classes))
        labels = self._labels_N.tolist()
        with ThreadPoolExecutor(threads) as pool:
            for first in range(0, len(labels), _SIZES_AT_A_TIME):
                positions = range(first, min(first + _SIZES_AT_A_TIME, len(labels)))
                sizes = pool.map(self.collection.size_of, positions)
                for position, size in zip(positions, sizes, strict=True):
                    name = self.collection.name(position).encode("utf-8", "surrogateescape")
                    told[labels[position]].update(name + b"\0%d\0" % size)
        return {
            name: f"{count} pictures, digest {digest.hexdigest()[:8]}"
            for name, count, digest in zip(self.classes, counts, told, strict=True)
            if count
        }

    def remarks(self, rejects: Rejects) -> list[str]:
        """Lines for the user about the source, after a pass that had these rejects."""
        left_out = self.collection.left_out
        told = [f"not looked at: {left_out}"] if left_out else []
        if not len(rejects):
            return told
        labels = self._labels_N[self._order].tolist()
        planned = Counter(labels)
        lost = Counter(
            label for position, label in enumerate(labels) if self.name(position) in rejects
        )
        return told + [
            f"class {shown(self.classes[label])} has no picture left: none can be read"
            for label, count in sorted(lost.items())
            if count == planned[label]
        ]

    def read(self, position: int) -> Picture:
        """Read and crop one picture, and its features where asked for.

        Raises:
            UnreadablePictureError: the picture cannot be read.
            UserError: its features cannot be read, or do not fit.
        """
        where = int(self._order[position])
        name = self.collection.name(where)
        decoded = decode_square(
            lambda: self.collection.open(where),
            f"{self.collection.place.rstrip('/')}/{name}",
            name,
            self._options.size,
            self._options.decode,
        )
        external_Cgg = self._external(name) if self._features is not None else None
        label = int(self._labels_N[where])
        return Picture(name, decoded.image_HWC, label, external_Cgg, decoded.is_first)

    def _external(self, name: str) -> NDArray[np.float32]:
        assert self._features is not None
        path = (self._features / name).with_suffix(".npy")
        features = read_features(path, self._options.grid)
        if self.external_channels not in (None, len(features)):
            raise UserError(
                f"{path} has {len(features)} feature channels, others {self.external_channels}"
            )
        return features


def _described(text: str, how: DecodeOptions) -> str:
    """The collection's description with what the options change, for the card."""
    told = [text]
    if not how.exif:
        told.append("neither turned nor colour-managed")
    if how.least_side > 1:
        told.append(f"sides of at least {how.least_side}")
    return ", ".join(told)
