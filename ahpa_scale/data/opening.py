# SPDX-License-Identifier: Apache-2.0
"""Makes data sets ready to be read: their indexes, whether they are whole, and where they lie.

Shapes: S shards, K samples that are read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ahpa_scale import storage
from ahpa_scale.data.codec_file import read_codec
from ahpa_scale.data.fetching import ShardStream
from ahpa_scale.data.index import Index, settle_index
from ahpa_scale.data.mix import Member, counts
from ahpa_scale.data.order import Part
from ahpa_scale.data.whole import check_whole
from ahpa_scale.errors import UserError
from ahpa_scale.method.level_codec import LevelCodec


@dataclass(frozen=True)
class OpenSet:
    """A data set that is ready to be read.

    Attributes:
        member: the set.
        index: index of its shards.
        remote: where its shards come from; None if they are read in place.
        local: the cache of its shards, or the set itself.
        first: the run's index of its first sample.
        count: samples that a pass takes from it.
        codec: of its levels; None if they are not read, or pooled.
    """

    member: Member
    index: Index
    remote: str | None
    local: str
    first: int
    count: int
    codec: LevelCodec | None = None

    def stream(self) -> ShardStream:
        """What fetches its shards."""
        return ShardStream(self.index, self.remote, self.local)

    def part(self) -> Part:
        """What a pass takes from it."""
        sizes_S = np.array([shard.samples for shard in self.index.shards], np.int64)
        kept_K = np.arange(sizes_S.sum())
        skipped = np.array(self.member.skipped, np.int64)
        if len(skipped):
            kept_K = np.delete(kept_K, skipped)
            sizes_S = sizes_S - _per_shard(skipped, sizes_S)
        return Part(self.first + kept_K, sizes_S[sizes_S > 0], self.count)


def open_sets(
    members: Sequence[Member], local: str | None, *, in_place: bool, with_levels: bool
) -> list[OpenSet]:
    """Reads the sets' indexes and checks that no shard is missing.

    Args:
        members: the sets.
        local: cache folder on this node; each set has its own sub-folder.
        in_place: whether a local set is read where it lies, although there is a cache.
        with_levels: whether levels are read.

    Raises:
        UserError: a set lacks a cache or its index, or is too small for its share.
        ShardError: a shard is missing or has another size.
        UnreachableError: a store does not answer.
    """
    opened, first = [], 0
    for member, count in zip(members, counts(members), strict=True):
        url, card = member.wanted.url, member.card
        lies_here = in_place and not storage.is_remote(url)
        remote, place = _places(url, None if lies_here else local, card.fingerprint)
        index = settle_index(url, card, None if remote is None else place)
        # One rank checks a store for all. A path may be another disk on each host, so each checks.
        if os.environ.get("RANK" if storage.is_remote(url) else "LOCAL_RANK", "0") == "0":
            check_whole(url, index)
        level_codec = read_codec(url, card) if with_levels and card.kind == "latents" else None
        opened.append(OpenSet(member, index, remote, place, first, count, level_codec))
        first += card.num_samples
    return opened


def _places(url: str, local: str | None, name: str) -> tuple[str | None, str]:
    """Where streaming reads from and caches to."""
    if local is not None:
        if storage.is_remote(local):
            raise UserError(f"the cache folder must be local, not {local}")
        source = url if storage.is_remote(url) else str(storage.local_path(url))
        return source, storage.join(local, name)
    if storage.is_remote(url):
        raise UserError(f"{url} needs a local cache folder: set `local`")
    return None, str(storage.local_path(url))


def _per_shard(skipped: NDArray[np.int64], sizes_S: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many samples of each shard are skipped, [S]."""
    ends_S = np.cumsum(sizes_S)
    return np.bincount(np.searchsorted(ends_S, skipped, side="right"), minlength=len(sizes_S))
