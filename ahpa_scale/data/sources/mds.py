# SPDX-License-Identifier: Apache-2.0
"""MDS shards with a column of pictures and one of labels, as mosaicml-streaming writes them.

Only bytes are taken from the shards: the library would open pictures of any format, and columns of
type `pkl` run code. A picture is read by its bounds, so a store's shards are not copied.

Shapes: N pictures, H W their sides.
"""

from __future__ import annotations

import hashlib
import io
import sys
from array import array
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Annotated, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from ahpa_scale import storage, typed_json
from ahpa_scale.data.card import CARD_NAME, read_card
from ahpa_scale.data.pictures.decode import MOST_BYTES
from ahpa_scale.data.sources.base import SourceOptions
from ahpa_scale.data.sources.classes import ONE_CLASS, coded
from ahpa_scale.data.sources.columns import chosen_image, chosen_label
from ahpa_scale.errors import UserError

INDEX_NAME = "index.json"
_INDEX_LIMIT = 512 << 20
_ENCODED = ("bytes", "jpeg", "png", "jpegarray", "jpeg_array")
_NUMBERS = {
    "int": "int64",
    **{f"{k}int{b}": f"{k}int{b}" for k in ("", "u") for b in (8, 16, 32, 64)},
}
_TEXTS = ("str", "str_int")


class _File(BaseModel):
    basename: str
    bytes: Annotated[int, Field(ge=1, lt=1 << 32)]


class _Shard(BaseModel):
    """A shard as the index describes it, as far as it matters here."""

    format: str
    column_names: list[str]
    column_encodings: list[str]
    column_sizes: list[Annotated[int, Field(ge=0)] | None]
    raw_data: _File
    samples: Annotated[int, Field(ge=0, lt=1 << 32)]
    compression: str | None = None

    def column(self, name: str) -> int:
        """Position of a column."""
        return self.column_names.index(name)


class _Index(BaseModel):
    version: int
    shards: Annotated[list[_Shard], Field(min_length=1)]


class MdsPictures:
    """Pictures of a folder or URL of MDS shards, see `Collection`. If it is a prepared data set of
    pictures, its card names the classes.

    Args:
        place: the folder or URL.
        options: `image_column`, `label_column` and `class_depth` 0 are used.

    Raises:
        UserError: the index is damaged, shards are compressed or cut short, or a column is missing
            or of a type that is no picture or label.
    """

    left_out: str | None = None

    def __init__(self, place: str, options: SourceOptions) -> None:
        self.place = place
        self.description = f"MDS {place.rstrip('/').rpartition('/')[2]}"
        where = storage.join(place, INDEX_NAME)
        content = storage.read_bytes(where, _INDEX_LIMIT)
        told = typed_json.parse(content, where, _INDEX_LIMIT)
        self._shards = _checked(typed_json.fit(_Index, told, f"{where} is no index of MDS"), where)
        self.stamp = hashlib.sha256(content).hexdigest()
        names = self._shards[0].column_names
        self._image = chosen_image(_of_pictures(self._shards[0]), options.image_column, where)
        card_there = storage.exists(storage.join(place, CARD_NAME))
        known = read_card(place).classes if card_there else None
        one_class = options.class_depth == 0
        label = (
            None
            if one_class
            else chosen_label(
                [name for name in names if name != self._image], options.label_column, where
            )
        )
        bounds, values = array("q"), list[str | int]()
        for number, shard in enumerate(self._shards):
            scanned = _scanned(
                storage.join(place, shard.raw_data.basename), shard, self._image, label
            )
            for start, stop, value in scanned:
                bounds.extend((number, start, stop))
                # A million labels are few different texts.
                values.append(sys.intern(value) if isinstance(value, str) else value)
        self._bounds_N3 = np.array(bounds, np.int64).reshape(-1, 3)
        self.classes, self.labels_N = coded(values)
        if one_class:
            self.classes = ONE_CLASS
        elif self.classes is None:
            self.classes = known

    def name(self, position: int) -> str:
        """The sample's number."""
        return str(position)

    def size_of(self, position: int) -> int:
        """Bytes of a picture."""
        _, start, stop = self._bounds_N3[position].tolist()
        return int(stop - start)

    def open(self, position: int) -> BinaryIO | NDArray[np.uint8]:
        """Reads the column's bytes."""
        number, start, stop = self._bounds_N3[position].tolist()
        if stop - start > MOST_BYTES:
            raise ValueError(f"it has {stop - start} bytes, and may have 1 to {MOST_BYTES}")
        shard = self._shards[number]
        file = storage.join(self.place, shard.raw_data.basename)
        content = storage.read_range(file, start, stop)
        if len(content) != stop - start:
            raise ValueError("its shard has become shorter")
        kind, *details = shard.column_encodings[shard.column(self._image)].split(":")
        if kind == "pil":
            return _of_pillow(content)
        if kind == "ndarray":
            sides = [int(side) for side in details[1].split(",")]
            return np.frombuffer(content, np.uint8).reshape(sides)
        return io.BytesIO(content)


def _checked(index: _Index, where: str) -> list[_Shard]:
    first = index.shards[0]
    for shard in index.shards:
        name = shard.raw_data.basename
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise UserError(f"{where} names a shard outside of its folder: {name!r:.200}")
        if index.version != 2 or shard.format != "mds":
            raise UserError(f"{where}: {name} is {shard.format!r:.80}, and only mds is read")
        if shard.compression is not None:
            raise UserError(
                f"{where}: {name} is compressed ({shard.compression}), so its pictures can't be "
                "read one by one: write it without compression"
            )
        columns = [len(shard.column_names), len(shard.column_encodings), len(shard.column_sizes)]
        if len(set(columns)) != 1 or shard.column_names != first.column_names:
            raise UserError(f"{where}: {name} has other columns than the first shard")
    return index.shards


def _of_pictures(shard: _Shard) -> list[str]:
    """Names of the columns that can be pictures."""

    def fits(encoding: str) -> bool:
        kind, *details = encoding.split(":")
        sides = details[1].split(",") if len(details) == 2 else []
        pixels = kind == "ndarray" and details[:1] == ["uint8"] and len(sides) in (2, 3)
        return kind in (*_ENCODED, "pil") or pixels

    named = zip(shard.column_names, shard.column_encodings, strict=True)
    return [name for name, encoding in named if fits(encoding)]


def _scanned(
    place: str, shard: _Shard, image: str, label: str | None
) -> Iterator[tuple[int, int, str | int]]:
    """Bounds of each picture in a shard, and its label."""
    chosen = shard.column(image)
    other = None if label is None else shard.column(label)
    fixed = np.array([size or 0 for size in shard.column_sizes], np.int64)
    varying = [i for i, size in enumerate(shard.column_sizes) if not size]
    with storage.open_forwards(place) as file:
        head = np.frombuffer(_exactly(file, 4 * (2 + shard.samples), place), "<u4").astype(np.int64)
        starts = head[1:]
        if head[0] != shard.samples or (np.diff(starts) < 0).any():
            raise UserError(f"{place} is damaged: its head does not fit the index")
        for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            file.seek(start)
            sizes = fixed.copy()
            sizes[varying] = np.frombuffer(_exactly(file, 4 * len(varying), place), "<u4")
            places = start + 4 * len(varying) + np.concatenate([[0], np.cumsum(sizes)])
            if places[-1] != end:
                raise UserError(f"{place} is damaged: a sample does not have the size that it says")
            value: str | int = 0
            if other is not None:
                file.seek(int(places[other]))
                text = _exactly(file, int(sizes[other]), place)
                value = _label(shard.column_encodings[other], text, f"{place}: column {label}")
            yield int(places[chosen]), int(places[chosen + 1]), value
        file.seek(0, io.SEEK_END)
        if file.tell() < int(starts[-1]):
            raise UserError(f"{place} is cut short: copy it again")


def _exactly(file: BinaryIO, size: int, place: str) -> bytes:
    content = file.read(size)
    if len(content) != size:
        raise UserError(f"{place} is cut short: copy it again")
    return content


def _label(encoding: str, content: bytes, where: str) -> str | int:
    if encoding in _TEXTS:
        return content.decode("utf-8", "replace")
    kind = encoding
    if encoding.startswith("ndarray:"):
        _, *details = encoding.split(":")
        kind = details[0] if details[1:] in (["1"], [""]) else encoding
    dtype = _NUMBERS.get(kind)
    if dtype is None or len(content) != np.dtype(dtype).itemsize:
        raise UserError(f"{where} is {encoding}, and labels are whole numbers or text")
    return int(np.frombuffer(content, dtype)[0])


def _of_pillow(content: bytes) -> NDArray[np.uint8]:
    """Pixels of the encoding `pil`: width, height and length of the mode, the mode, the pixels."""
    width, height, length = np.frombuffer(content[:12], "<u4").tolist()
    mode = content[12 : 12 + length]
    shape: Any = {b"RGB": (height, width, 3), b"L": (height, width)}.get(mode)
    if shape is None:
        raise ValueError(f"its pixels are of Pillow's mode {mode!r:.20}, and not RGB or L")
    return np.frombuffer(content[12 + length :], np.uint8).reshape(shape)
