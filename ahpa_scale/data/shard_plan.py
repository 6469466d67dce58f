# SPDX-License-Identifier: Apache-2.0
"""Which pictures each shard holds: fixed before any is encoded, so that it depends neither on the
number of processes nor on an interruption.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ahpa_scale.data import codec
from ahpa_scale.data.card import DatasetCard
from ahpa_scale.data.settings import PrepareSettings

#: Bytes that a PNG of a photograph takes for each byte of its pixels, about.
_OF_PIXELS = 0.6
_UNITS = {"kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30}


@dataclass(frozen=True)
class ShardPlan:
    """Every shard holds the readable ones among equally many neighbours.

    Attributes:
        pictures: of the source.
        per_shard: of a shard.
    """

    pictures: int
    per_shard: int

    @classmethod
    def of(cls, settings: PrepareSettings, card: DatasetCard, pictures: int) -> ShardPlan:
        """The plan of a preparation."""
        most = _bytes(settings.shard_size)
        per_shard = max(1, int((most - _header_bytes(card)) / _sample_bytes(card)))
        return cls(pictures, per_shard)

    @property
    def shards(self) -> int:
        """Number of shards, if each has a readable picture."""
        return math.ceil(self.pictures / self.per_shard)

    def positions(self, shard: int) -> range:
        """The pictures of a shard, by their positions in the source."""
        first = shard * self.per_shard
        return range(first, min(first + self.per_shard, self.pictures))


def layout(settings: PrepareSettings) -> str:
    """What shards of one set must have in common besides their origin: their size, and what a
    picture's last bits depend on, the pictures beside it in a batch and the kind of device.
    """
    device = settings.all_devices[0].partition(":")[0]
    return f"shard_size {settings.shard_size}, batch_size {settings.batch_size}, {device}"


def _header_bytes(card: DatasetCard) -> int:
    """Of a shard, about: its columns as JSON, and the offset of its end."""
    return 256 + sum(len(name) + len(kind) + 16 for name, kind in codec.columns(card).items())


def _sample_bytes(card: DatasetCard) -> float:
    total = 4.0  # its offset
    for encoding in codec.columns(card).values():
        kind, *details = encoding.split(":")
        if kind == "ndarray":
            sides = [int(side) for side in details[1].split(",")]
            total += np.dtype(details[0]).itemsize * math.prod(sides)
        else:
            total += 8 if kind == "int" else 4 + _OF_PIXELS * 3 * card.image_size**2
    return total


def _bytes(size: int | str) -> int:
    text = str(size)
    unit = _UNITS.get(text[-2:], 1)
    return int(text.rstrip("bkmg")) * unit
