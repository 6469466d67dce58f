# SPDX-License-Identifier: Apache-2.0
"""WebDataset tars. One pass over their headers makes an index. Each picture is then read by its
bounds: of a local file, or by one request to a store.

WebDataset itself streams tars from their start, in which case there is no order of all pictures,
no share for another machine and no place to go on from.

Shapes: N pictures.
"""

from __future__ import annotations

import io
import sys
from array import array
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ahpa_scale import storage
from ahpa_scale.data.pictures.decode import MOST_BYTES, SUFFIXES
from ahpa_scale.data.pictures.listing import LeftOut
from ahpa_scale.data.sources.base import SourceOptions
from ahpa_scale.data.sources.classes import ONE_CLASS, coded
from ahpa_scale.data.sources.columns import LABELS
from ahpa_scale.data.sources.extras import extra
from ahpa_scale.data.sources.shards import shards_of
from ahpa_scale.data.sources.tar_index import Member, label_in_json, members
from ahpa_scale.errors import UserError

#: Tars that are indexed at a time.
_AT_A_TIME = 8


@dataclass
class _Shard:
    """The pictures of one tar; `bounds` holds the first byte and the end of each."""

    names: list[str] = field(default_factory=list)
    bounds: array[int] = field(default_factory=lambda: array("q"))
    labels: list[str | int] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)


class WebDataset:
    """Pictures of WebDataset tars, see `Collection`.

    Of each sample, the picture is the member with a picture's ending. Its label is that of the
    member `.cls`, or of `label` in `.json`, or the name of the first folder.

    Args:
        place: path or URL; `{000..099}` and `*` name several tars.
        options: `image_column`, `label_column` and `class_depth` are used.

    Raises:
        UserError: the extra is not installed, no tar is there, one is damaged, or a sample has no
            label or several pictures.
    """

    stamp = ""

    def __init__(self, place: str, options: SourceOptions) -> None:
        with extra("webdataset", place):
            import webdataset.tariterators  # noqa: F401
        self.place, self._shards = place, shards_of(place)
        self.description = f"WebDataset {place.rstrip('/').rpartition('/')[2]}"
        with ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="index") as pool:
            found = list(pool.map(lambda shard: _indexed(shard, options), self._shards))
        self._names = [name for shard in found for name in shard.names]
        self._bounds_N2 = np.concatenate(
            [np.array(shard.bounds, np.int64).reshape(-1, 2) for shard in found]
        )
        self._shard_N = np.repeat(np.arange(len(found)), [len(shard.names) for shard in found])
        self.classes, self.labels_N = _labels(found, options)
        left_out = LeftOut()
        for shard in found:
            left_out.update(shard.left_out)
        self.left_out = left_out.told()

    def name(self, position: int) -> str:
        """Name of the tar and of the member in it."""
        shard = self._shards[self._shard_N[position]].rpartition("/")[2]
        return f"{shard}/{self._names[position]}"

    def size_of(self, position: int) -> int:
        """Bytes of a picture."""
        start, stop = self._bounds_N2[position].tolist()
        return int(stop - start)

    def open(self, position: int) -> BinaryIO:
        """Reads the member's bytes."""
        start, stop = self._bounds_N2[position].tolist()
        if stop - start > MOST_BYTES:
            raise ValueError(f"it has {stop - start} bytes, and may have 1 to {MOST_BYTES}")
        content = storage.read_range(self._shards[self._shard_N[position]], start, stop)
        if len(content) != stop - start:
            raise ValueError("its tar has become shorter")
        return io.BytesIO(content)


def _labels(
    shards: list[_Shard], options: SourceOptions
) -> tuple[tuple[str, ...] | None, NDArray[np.int64]]:
    labels = [label for shard in shards for label in shard.labels]
    if options.class_depth == 0:
        return ONE_CLASS, np.zeros(len(labels), np.int64)
    return coded(labels)


def _indexed(place: str, options: SourceOptions) -> _Shard:
    wanted = (options.label_column or "").lower()
    texts = (".cls", ".json", *([f".{wanted}"] if wanted else []))
    shard = _Shard()
    for sample in _samples(place, texts):
        key = sample["__key__"]
        files = {name: each for name, each in sample.items() if isinstance(each, Member)}
        picture = _picture(files, options.image_column, f"{place}: sample {key}")
        others = {f".{name}" for name in files} - {picture, *texts}
        shard.left_out.update(others)
        if picture is None:
            continue
        chosen = files[picture[1:]]
        shard.names.append(chosen.name)
        shard.bounds.extend((chosen.offset, chosen.offset + chosen.size))
        label = _label(key, files, wanted, options.class_depth)
        if label is None:
            raise UserError(
                f"{place}: sample {key} has no label: no .cls, no label in .json and no folder; "
                "give --label-column, or --class-depth 0 for one class"
            )
        # A million labels are few different texts.
        shard.labels.append(sys.intern(label) if isinstance(label, str) else label)
    return shard


def _samples(place: str, texts: tuple[str, ...]) -> Iterator[Mapping[str, Any]]:
    """Members grouped by the rules of the library."""
    from webdataset.tariterators import group_by_keys, meta_prefix, meta_suffix

    def files() -> Iterator[dict[str, Any]]:
        for member in members(place, texts):
            base = member.name.rpartition("/")[2]
            hidden = base.startswith(".") or "/." in f"/{member.name}"
            meta = member.name.startswith(meta_prefix) and member.name.endswith(meta_suffix)
            if not hidden and not meta:
                yield {"fname": member.name, "data": member, "__url__": place}

    try:
        yield from group_by_keys(files())
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{place} has two files of one name: {error}") from None


def _picture(files: Mapping[str, Member], wanted: str | None, where: str) -> str | None:
    """Ending of the member that is the picture, with its dot; None if there is none."""
    if wanted is not None:
        ending = wanted.lower().lstrip(".")
        return f".{ending}" if ending in files else None
    plain = [f".{name}" for name in files if f".{name}" in SUFFIXES]
    longer = [f".{name}" for name in files if f".{name.rpartition('.')[2]}" in SUFFIXES]
    found = plain or longer
    if len(found) > 1:
        raise UserError(
            f"{where} has several pictures ({', '.join(found)}): give one as --image-column "
            f"{found[0][1:]}"
        )
    return found[0] if found else None


def _label(
    key: str, files: Mapping[str, Member], wanted: str, depth: int | None
) -> str | int | None:
    if depth == 0:
        return 0
    if depth is None:
        ending = wanted if wanted in files else "cls"
        if ending in files and (not wanted or ending == wanted):
            text = (files[ending].text or b"").decode("utf-8", "replace").strip()
            return text or None
        if "json" in files:
            keys = (wanted,) if wanted else LABELS
            found = label_in_json(files["json"].text or b"", keys)
            if found is not None or wanted:
                return found
        if wanted:
            return None
    folders = key.split("/")[:-1]
    level = depth or 1
    return folders[level - 1] if len(folders) >= level else None
