# SPDX-License-Identifier: Apache-2.0
"""Reads only the wanted columns of a shard."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from streaming.base.format.mds.reader import MDSReader

from ahpa_scale.data.whole import ADVICE, ShardError


class ColumnReader(MDSReader):
    """A shard reader for some columns; columns outside their span cost no disk access.

    Args:
        shard: the reader that streaming made.
        wanted: names of the columns to read.
        evicts: whether the file is a cache's, and may be removed.
    """

    def __init__(self, shard: MDSReader, wanted: tuple[str, ...], evicts: bool = True) -> None:
        super().__init__(
            dirname=shard.dirname,
            split=shard.split,
            column_encodings=shard.column_encodings,
            column_names=shard.column_names,
            column_sizes=shard.column_sizes,
            compression=shard.compression,
            hashes=shard.hashes,
            raw_data=shard.raw_data,
            samples=shard.samples,
            size_limit=shard.size_limit,
            zip_data=shard.zip_data,
        )
        self._wanted, self._evicts = wanted, evicts
        self._places: dict[str, tuple[int, str, tuple[int, ...]]] = {}
        if all(self.column_sizes):
            self._find_columns()

    def evict(self) -> int:
        """Removes the file if it is a cache's; returns the bytes that the cache has less."""
        return int(super().evict()) if self._evicts else 0

    def get_item(self, idx: int) -> dict[str, Any]:
        """The wanted columns of one sample.

        Raises:
            FileNotFoundError: the shard is not here yet; streaming downloads it and tries again.
        """
        if not self._places:
            sample = super().get_item(idx)
            return {name: sample[name] for name in self._wanted}
        span = self._read_span(idx)
        return {
            name: np.frombuffer(span, dtype, int(np.prod(shape)), offset).reshape(shape)
            for name, (offset, dtype, shape) in self._places.items()
        }

    def _find_columns(self) -> None:
        """Records where the wanted columns lie within the span that holds them all."""
        ends = np.cumsum(self.column_sizes).tolist()
        starts = [0, *ends[:-1]]
        chosen = [i for i, name in enumerate(self.column_names) if name in self._wanted]
        self._span = (starts[chosen[0]], ends[chosen[-1]])
        for i in chosen:
            encoding, *details = self.column_encodings[i].split(":")
            dtype, shape = "int64", tuple[int, ...]()
            if encoding == "ndarray":
                dtype, shape = details[0], tuple(int(side) for side in details[1].split(","))
            self._places[self.column_names[i]] = (starts[i] - self._span[0], dtype, shape)

    def _read_span(self, idx: int) -> bytearray:
        path = os.path.join(self.dirname, self.split, self.raw_data.basename)
        first, last = self._span
        # A bytearray, because tensors on this memory must be writable.
        span = bytearray(last - first)
        with open(path, "rb", 0) as file:
            # MDS: uint32 number of samples, then the uint32 offset of each.
            file.seek(4 * (1 + idx))
            begin = int.from_bytes(file.read(4), "little")
            file.seek(begin + first)
            if file.readinto(span) != len(span):
                raise ShardError(f"{path} is cut short: {ADVICE}")
        return span
