# SPDX-License-Identifier: Apache-2.0
"""Prepared shards -> batches, with the sample's index and the pass it is read in.

Shapes: B batch, C channels, H W latent sides, S picture side, g the token grid's side.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from streaming import StreamingDataLoader, StreamingDataset
from streaming.base.dataset import _ShardState
from streaming.base.format.mds.reader import MDSReader
from streaming.base.util import clean_stale_shared_memory

from ahpa_scale import storage
from ahpa_scale.data import codec
from ahpa_scale.data.card import SHARD_HASH, DatasetCard, read_card
from ahpa_scale.data.host_lock import alone_on_host
from ahpa_scale.data.index import settle_index
from ahpa_scale.errors import UserError
from ahpa_scale.requests import leave_signals_to_parent

_living: WeakSet[LatentStream] = WeakSet()


class LatentStream(StreamingDataset):
    """A streaming data set that yields the keys of our batches.

    Sample: `index`, `epoch`, `label` (int); `moments` [2C, H, W] float16 or `image` [3, S, S]
    uint8; `prior.<level>` [C_level, g, g] for each wanted level. Levels that nobody asked for are
    neither decoded nor read from disk.

    Args:
        card: of this data set.
        levels: wanted levels; None for all that is stored.
        options: of StreamingDataset.
    """

    def __init__(
        self, *, card: DatasetCard, levels: tuple[str, ...] | None = None, **options: Any
    ) -> None:
        wanted = codec.wanted_columns(card, levels)
        self._at_hand: set[int] = set()
        super().__init__(**options)
        self.card = card
        self.shards: list[ColumnReader] = [ColumnReader(shard, wanted) for shard in self.shards]
        self._epoch: int | None = None
        _living.add(self)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """One pass (the rest of one after a resume) over this worker's samples.

        Raises:
            RuntimeError: a shard could not be had; the log says why.
        """
        self._epoch = None
        yield from super().__iter__()
        # streaming only logs the failure of its download threads, and ends the pass early.
        if self._event.is_set():
            raise RuntimeError(f"could not get a shard of {self.streams[0].remote}: see the log")

    def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:
        """Fetch a shard; one that arrives damaged is not left in the cache.

        The thread that looks ahead asks for every single sample's shard, each time under a lock
        shared by the host; where nothing is ever evicted, once a shard is enough.

        Raises:
            UserError: the shard's hash is not that of the index.
        """
        ahead = not (blocking or self.cache_limit)
        if ahead and shard_id in self._at_hand:
            return
        try:
            super().prepare_shard(shard_id, blocking)
        except ValueError:
            # The next run would take a file that lies here for a sound one. Only copies go: where
            # the cache is the data set itself, streaming checks nothing and this is not reached.
            if self.streams[0].remote is not None:
                self.shards[shard_id].evict()
            raise
        # Another worker may be fetching it still.
        if ahead and self._shard_states[shard_id] == _ShardState.LOCAL:
            self._at_hand.add(shard_id)

    def get_item(self, sample_id: int, retry: int = 7) -> dict[str, Any]:
        """One sample; outside of a pass its `epoch` is that of the latest pass begun."""
        stored = super().get_item(sample_id, retry)
        sample: dict[str, Any] = {
            "index": int(sample_id),
            "epoch": self._current_epoch(),
            "label": int(stored.pop("label")),
        }
        for column, value in stored.items():
            sample[column] = codec.decode(column, value, self.card.prior_dtype)
        return sample

    def _current_epoch(self) -> int:
        # streaming keeps the number of the *next* pass in memory shared by a node's workers. It
        # moves on behind a barrier of all workers before the first sample, and resuming sets it
        # too; so it is right at the first sample of a pass and is read just there.
        if self._epoch is None:
            self._epoch = max(self.next_epoch - 1, 0)
        return self._epoch


class ColumnReader(MDSReader):
    """A shard of which only some columns are read; the others cost no disk access.

    Args:
        shard: the reader that streaming made.
        wanted: names of the columns to read.
    """

    def __init__(self, shard: MDSReader, wanted: tuple[str, ...]) -> None:
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
        self._wanted = wanted
        self._places: dict[str, tuple[int, str, tuple[int, ...]]] = {}
        if all(self.column_sizes):
            self._find_columns()

    def get_item(self, idx: int) -> dict[str, Any]:
        """The wanted columns of one sample.

        Raises:
            FileNotFoundError: the shard is not here yet; streaming downloads it and asks again.
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
        """Note where the wanted columns lie within the span that holds them all."""
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
        # A bytearray, because tensors made of it must be writable.
        span = bytearray(last - first)
        with open(path, "rb", 0) as file:
            # MDS: uint32 number of samples, then the uint32 offset of each.
            file.seek(4 * (1 + idx))
            begin = int.from_bytes(file.read(4), "little")
            file.seek(begin + first)
            if file.readinto(span) != len(span):
                raise UserError(f"shard {path} is cut short: delete it, or prepare the data again")
        return span


def build_loader(
    remote: str,
    *,
    batch_size: int,
    local: str | None = None,
    levels: tuple[str, ...] | None = None,
    seed: int = 0,
    shuffle: bool = True,
    num_workers: int = 0,
    num_canonical_nodes: int = 1,
    predownload: int | None = None,
    cache_limit: int | str | None = None,
    drop_last: bool = True,
    clean_stale: bool = False,
) -> StreamingDataLoader:
    """A loader of a prepared data set that can resume in mid-epoch.

    Args:
        remote: the data set: a local folder, s3:// or gs://.
        batch_size: samples per rank.
        local: cache folder on this node; needed for object stores. Each data set has its own
            sub-folder, named by its fingerprint, so a re-made set never meets old shards.
        levels: prior levels to read; None for all stored, () for none.
        seed: of the sample order.
        shuffle: whether the order changes with the pass.
        num_workers: reader processes per rank.
        num_canonical_nodes: the sample order depends on it and not on the machines; set it to the
            number of nodes (or a multiple) so that each node downloads its part only.
        predownload: samples fetched ahead, per worker.
        cache_limit: bytes, or text such as '200gb', that the cache may take on this node.
        drop_last: leave out a last, smaller batch.
        clean_stale: first remove shared memory that a killed run left. It removes that of *living*
            runs too, so only where no other streaming process shares the host or pod.

    Raises:
        UserError: no whole data set there, a level it does not hold, or too few samples.
    """
    card = read_card(remote)
    if clean_stale:
        _clean_stale()
    places = _places(remote, local, card)
    settle_index(remote, card, None if places["remote"] is None else places["local"])
    data = _open_stream(
        card,
        levels,
        **places,
        batch_size=batch_size,
        shuffle=shuffle,
        shuffle_seed=seed,
        num_canonical_nodes=num_canonical_nodes,
        predownload=predownload,
        cache_limit=cache_limit,
    )
    loader = StreamingDataLoader(
        data,
        batch_size=batch_size,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        drop_last=drop_last,
        worker_init_fn=leave_signals_to_parent,
    )
    if len(loader) == 0:
        raise UserError(
            f"{remote} has {card.num_samples} samples: too few for one batch of {batch_size} "
            "on each rank"
        )
    return loader


def _places(remote: str, local: str | None, card: DatasetCard) -> dict[str, str | None]:
    """Where streaming reads from and caches to."""
    if local is not None:
        if storage.is_remote(local):
            raise UserError(f"the cache folder must be local, not {local}")
        source = remote if storage.is_remote(remote) else str(storage.local_path(remote))
        cache = storage.join(local, card.fingerprint)
        # Shards that arrive are checked against the hash of the index.
        return {"remote": source, "local": cache, "validate_hash": SHARD_HASH}
    if storage.is_remote(remote):
        raise UserError(f"{remote} needs a local cache folder: set `local`")
    return {"remote": None, "local": str(storage.local_path(remote))}


def _open_stream(card: DatasetCard, levels: tuple[str, ...] | None, **options: Any) -> LatentStream:
    try:
        with alone_on_host():
            return LatentStream(card=card, levels=levels, **options)
    except ValueError as error:
        if "Reused local directory" not in str(error):
            raise
        raise UserError(
            f"the cache folder {options['local']} is in use by another run on this host: give "
            "this run another, or, if that run is dead and no other one lives here, set clean_stale"
        ) from error


def _clean_stale() -> None:
    if len(_living) > 0:
        raise UserError("clean_stale would break a data set that this process reads: use it first")
    clean_stale_shared_memory()
