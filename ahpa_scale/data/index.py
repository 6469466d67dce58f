# SPDX-License-Identifier: Apache-2.0
"""The shards' index, checked before streaming reads it.

It holds file names to write, sizes to allocate and column types; streaming checks none of them.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, Field

from ahpa_scale import storage, typed_json
from ahpa_scale.data import codec
from ahpa_scale.data.card import CARD_NAME, DatasetCard
from ahpa_scale.errors import UserError

INDEX_NAME = "index.json"
#: Most bytes of an index: about 600,000 shards.
INDEX_LIMIT = 512 << 20
#: MDS counts a shard's bytes in 32 bits.
_LARGEST_SHARD = (1 << 32) - 1

_Name = Annotated[
    str, Field(pattern=r"^(part-[0-9]{5}-of-[0-9]{5}/)?shard\.[0-9]{5,10}\.mds$", max_length=64)
]
_Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class ShardFile(BaseModel):
    """One file: its name in the data set's folder, its size in bytes, and its hash."""

    model_config = typed_json.STRICT

    basename: _Name
    bytes: Annotated[int, Field(ge=1, le=_LARGEST_SHARD)]
    hashes: Annotated[dict[Literal["xxh64"], _Hash], Field(min_length=1)]


class Shard(BaseModel):
    """One shard, as MDSWriter describes it when this package prepares data."""

    model_config = typed_json.STRICT

    version: Literal[2]
    format: Literal["mds"]
    column_names: list[str]
    column_encodings: list[str]
    column_sizes: list[int | None]
    compression: None
    hashes: list[Literal["xxh64"]]
    raw_data: ShardFile
    samples: Annotated[int, Field(ge=1, le=_LARGEST_SHARD)]
    size_limit: Annotated[int, Field(ge=1)] | None
    zip_data: None


class Index(BaseModel):
    """All shards of a data set, in the order of their samples."""

    model_config = typed_json.STRICT

    version: Literal[2]
    shards: Annotated[list[Shard], Field(min_length=1)]


def parse_index(content: bytes, where: str) -> Index:
    """Parse the index without a card. Its names lie inside the data set's folder.

    Raises:
        UserError: it holds something that no preparation writes.
    """
    return typed_json.parse_as(Index, content, where, INDEX_LIMIT)


def read_index(content: bytes, card: DatasetCard, where: str) -> Index:
    """Parse the index and check it against the card.

    Args:
        content: bytes of the file.
        card: card of the data set.
        where: the file, for the message.

    Raises:
        UserError: it belongs to another data set, or holds something that no preparation writes.
    """
    if index_digest(content) != card.fingerprint:
        raise UserError(
            f"{where} is not the index that its {CARD_NAME} was written for: copy the data set "
            "again as a whole, or prepare it again"
        )
    index = parse_index(content, where)
    _check_shards(index, card, where)
    return index


def index_digest(content: bytes) -> str:
    """The fingerprint of a data set with this index."""
    return hashlib.sha256(content).hexdigest()[:16]


def settle_index(source: str, card: DatasetCard, cache: str | None) -> Index:
    """Read and check a data set's index, and copy the same bytes to where streaming reads it.

    Args:
        source: folder or URL of the data set.
        card: card of the data set.
        cache: cache folder of this data set; None if it is read in place.

    Raises:
        UserError: there is no index, or `read_index` refuses it.
        OSError: it cannot be read, or the cache cannot be written to.
    """
    copy = None if cache is None else Path(cache, INDEX_NAME)
    if copy is not None and copy.is_file():
        content = storage.read_bytes(copy, INDEX_LIMIT)
        if index_digest(content) == card.fingerprint:
            return read_index(content, card, str(copy))
    where = storage.join(source, INDEX_NAME)
    try:
        content = storage.read_bytes(where, INDEX_LIMIT)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{where} is missing: copy the data set again as a whole") from None
    index = read_index(content, card, where)
    if copy is not None:
        storage.write_bytes(copy, content)
    return index


def _check_shards(index: Index, card: DatasetCard, where: str) -> None:
    """Refuses columns that differ from the card, and sample counts too large for their files."""
    expected = codec.columns(card)
    # MDSWriter sorts the columns.
    names = sorted(expected)
    encodings = [expected[name] for name in names]
    sizes = [_size(encoding) for encoding in encodings]
    # A sample takes its offset, its columns, and the length of each column of variable size.
    least = 4 + sum(4 if size is None else size for size in sizes)
    seen: set[str] = set()
    for shard in index.shards:
        name = shard.raw_data.basename
        told = (shard.column_names, shard.column_encodings, shard.column_sizes)
        if told != (names, encodings, sizes):
            raise UserError(f"{where}: {name} has other columns than {CARD_NAME} tells of")
        if shard.samples * least > shard.raw_data.bytes:
            raise UserError(
                f"{where}: {name} cannot hold {shard.samples} samples in {shard.raw_data.bytes} "
                "bytes"
            )
        if name in seen:
            raise UserError(f"{where}: {name} comes twice")
        seen.add(name)
    samples = sum(shard.samples for shard in index.shards)
    if samples != card.num_samples:
        raise UserError(
            f"{where} counts {samples} samples, and {CARD_NAME} counts {card.num_samples}"
        )


def _size(encoding: str) -> int | None:
    """Bytes of each value of a column; None if the size varies."""
    kind, *details = encoding.split(":")
    if kind == "ndarray":
        dtype, shape = details
        return np.dtype(dtype).itemsize * math.prod(int(side) for side in shape.split(","))
    return 8 if kind == "int" else None
