# SPDX-License-Identifier: Apache-2.0
"""Reads prepared shards as batches, with each sample's index and the number of the pass.

Shapes: B batch, C channels, H W latent sides, S picture side, g the token grid's side.
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from streaming import StreamingDataLoader, StreamingDataset
from streaming.base.dataset import _Iterator, _ShardState
from streaming.base.distributed import get_local_rank

from ahpa_scale import storage
from ahpa_scale.data import codec, neighbours
from ahpa_scale.data.card import DatasetCard, read_card
from ahpa_scale.data.codec_file import read_codec
from ahpa_scale.data.columns import ColumnReader
from ahpa_scale.data.fetching import ShardStream
from ahpa_scale.data.host_lock import alone_on_host
from ahpa_scale.data.index import Index, settle_index
from ahpa_scale.data.leftovers import search_closes_its_handles
from ahpa_scale.data.sharing import hold_cache
from ahpa_scale.data.tracker import shield_tracker
from ahpa_scale.data.whole import ShardError, check_whole
from ahpa_scale.data.workers import Loader, begin_worker
from ahpa_scale.errors import UserError
from ahpa_scale.method.level_codec import LevelCodec


class LatentStream(StreamingDataset):
    """A streaming data set whose samples have the keys of our batches.

    Sample: `index`, `epoch`, `label` (int); `moments` [2C, H, W] float16 or `image` [3, S, S]
    uint8; `prior.<level>` [C_level, g, g] for each wanted level. Other levels are not decoded, and
    are read from disk only if they lie between wanted columns.

    Args:
        card: card of this data set.
        index: index of its shards.
        remote: where the data set is; None if it is read in place.
        local: the cache folder, or the data set itself.
        levels: wanted levels; None for all stored levels.
        level_codec: the data set's codec, for levels of int8.
        options: options of StreamingDataset.
    """

    def __init__(
        self,
        *,
        card: DatasetCard,
        index: Index,
        remote: str | None,
        local: str,
        levels: tuple[str, ...] | None = None,
        level_codec: LevelCodec | None = None,
        **options: Any,
    ) -> None:
        wanted = codec.wanted_columns(card, levels)
        self._level_codec = level_codec
        self._at_hand: set[int] = set()
        self._failure: BaseException | None = None
        super().__init__(streams=[ShardStream(index, remote, local)], **options)
        self.card = card
        self.shards: list[ColumnReader] = [ColumnReader(shard, wanted) for shard in self.shards]
        self._epoch: int | None = None

    @property
    def _filelock_root(self) -> str:
        """Folder of streaming's locks, in the memory that they protect. Containers may share that
        memory but not their temporary folders, where streaming would put the locks.
        """
        if not neighbours.MEMORY.is_dir():
            return tempfile.gettempdir()
        return str(neighbours.MEMORY / f"ahpa_scale-{os.getuid()}-locks")

    @_filelock_root.setter
    def _filelock_root(self, folder: str) -> None:
        """Ignores streaming's own choice."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """One pass over this worker's samples; after a resume, the rest of a pass.

        Raises:
            ShardError: a shard is missing, or not what the index says.
            UnreachableError: the store does not answer.
        """
        self._epoch = None
        try:
            yield from super().__iter__()
        except RuntimeError:
            if self._failure is None:
                raise
        # streaming ends the pass early when one of its threads has failed.
        if self._failure is not None:
            raise self._failure

    def _prepare_thread(self, it: _Iterator) -> None:
        with self._failing_aloud(it):
            super()._prepare_thread(it)

    def _ready_thread(self, it: _Iterator) -> None:
        with self._failing_aloud(it):
            super()._ready_thread(it)

    @contextmanager
    def _failing_aloud(self, it: _Iterator) -> Iterator[None]:
        """For a thread: its error also ends the pass, which would otherwise wait for it."""
        try:
            yield
        except Exception as error:
            self._fail(error)
            it.on_exit()

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error
        if hasattr(self, "_event"):  # within a pass
            self._event.set()

    def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:
        """Fetch a shard.

        The thread that fetches ahead asks for the shard of every sample, each time under a lock
        shared by the host. If nothing is ever evicted, asking once per shard is enough.

        Raises:
            ShardError: the shard is missing, or not what the index says.
            UnreachableError: the store does not answer.
        """
        ahead = not (blocking or self.cache_limit)
        if ahead and shard_id in self._at_hand:
            return
        try:
            super().prepare_shard(shard_id, blocking)
        except Exception as error:
            self._fail(error)
            # Otherwise other workers would wait for this one forever.
            self._shard_states[shard_id] = _ShardState.REMOTE
            raise
        # Another worker may still be fetching it.
        if ahead and self._shard_states[shard_id] == _ShardState.LOCAL:
            self._at_hand.add(shard_id)

    def get_item(self, sample_id: int, retry: int = 7) -> dict[str, Any]:
        """One sample; outside a pass its `epoch` is that of the latest pass begun.

        Raises:
            UserError: a label without a class, values that are not finite, or a picture that does
                not fit the card; the message names sample and shard.
        """
        try:
            stored = super().get_item(sample_id, retry)
        except ShardError:
            if not self._dropped(sample_id):
                raise
            stored = super().get_item(sample_id, retry)
        for column, value in stored.items():
            flaw = codec.flaw(column, value, self.card)
            if flaw is not None:
                shard = self.shards[self.spanner[sample_id][0]].raw_data.basename
                raise UserError(f"sample {sample_id} in {shard}: {flaw}; prepare the data again")
        sample: dict[str, Any] = {
            "index": int(sample_id),
            "epoch": self._current_epoch(),
            "label": int(stored.pop("label")),
        }
        for column, value in stored.items():
            sample[column] = codec.decode(column, value, self.card, self._level_codec)
        return sample

    def _dropped(self, sample_id: int) -> bool:
        """Drops a cached shard of a wrong size, to fetch it again; False if there is no cache."""
        shard_id, _ = self.spanner[sample_id]
        info = self.shards[shard_id].raw_data
        path = Path(self.streams[0].local, info.basename)
        if self.streams[0].remote is None:
            return False
        with FileLock(self._cache_filelock_path):
            # Another worker may have dropped it already.
            if path.exists() and path.stat().st_size != info.bytes:
                self._evict_shard(shard_id)
        return True

    def _current_epoch(self) -> int:
        # streaming keeps the number of the *next* pass in memory shared by a node's workers. It is
        # advanced behind a barrier of all workers before the first sample, and a resume sets it
        # too. So it is right at the first sample of a pass, and is read only there.
        if self._epoch is None:
            self._epoch = max(self.next_epoch - 1, 0)
        return self._epoch


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
    cache_limit: int | str | None = None,
    drop_last: bool = True,
) -> StreamingDataLoader:
    """A loader of a prepared data set that can resume in mid-epoch.

    Args:
        remote: the data set: a local folder, s3:// or gs://.
        batch_size: samples per rank.
        local: cache folder on this node; needed for object stores. Each data set has its own
            sub-folder, named by its fingerprint, so a re-made set never meets old shards.
        levels: prior levels to read; None for all stored, () for none.
        seed: seed of the sample order.
        shuffle: whether the order changes with each pass.
        num_workers: reader processes per rank.
        num_canonical_nodes: the sample order depends on it and not on the machines; set it to the
            number of nodes (or a multiple) so that each node downloads its part only.
        cache_limit: bytes, or text such as '200gb', that the cache may take on this node.
        drop_last: leave out a last, smaller batch.

    Raises:
        UserError: there is no complete data set, or it lacks a level or has too few samples.
        UnreachableError: the store does not answer.
    """
    card = read_card(remote)
    places = _places(remote, local, card)
    index = settle_index(remote, card, None if places["remote"] is None else places["local"])
    # One rank checks a store for all. A path may be another disk on each host, so each checks it.
    if os.environ.get("RANK" if storage.is_remote(remote) else "LOCAL_RANK", "0") == "0":
        check_whole(remote, index)
    coded = card.kind == "latents" and levels != ()
    data = _open_stream(
        card,
        levels,
        level_codec=read_codec(remote, card) if coded else None,
        index=index,
        **places,
        batch_size=batch_size,
        shuffle=shuffle,
        shuffle_seed=seed,
        num_canonical_nodes=num_canonical_nodes,
        cache_limit=cache_limit,
    )
    loader = Loader(
        data,
        batch_size=batch_size,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        drop_last=drop_last,
        worker_init_fn=begin_worker,
    )
    if len(loader) == 0:
        raise UserError(
            f"{remote} has {card.num_samples} samples: too few for one batch of {batch_size} "
            "on each rank"
        )
    return loader


def _places(remote: str, local: str | None, card: DatasetCard) -> dict[str, Any]:
    """Where streaming reads from and caches to."""
    if local is not None:
        if storage.is_remote(local):
            raise UserError(f"the cache folder must be local, not {local}")
        source = remote if storage.is_remote(remote) else str(storage.local_path(remote))
        cache = storage.join(local, card.fingerprint)
        return {"remote": source, "local": cache}
    if storage.is_remote(remote):
        raise UserError(f"{remote} needs a local cache folder: set `local`")
    return {"remote": None, "local": str(storage.local_path(remote))}


def _open_stream(card: DatasetCard, levels: tuple[str, ...] | None, **options: Any) -> LatentStream:
    shield_tracker()
    # An error's traceback is a cycle. A stream that only a traceback holds still has its cache.
    gc.collect()
    try:
        with alone_on_host(), search_closes_its_handles():
            stream = LatentStream(card=card, levels=levels, **options)
            if options["remote"] is not None and get_local_rank() == 0:
                hold_cache(options["local"], stream, alone=options["cache_limit"] is not None)
            return stream
    except ValueError as error:
        if "ache limit" in str(error):
            raise UserError(f"cache_limit: {' '.join(str(error).split())}") from error
        if "Reused local directory" not in str(error):
            raise
        raise UserError(
            f"the cache folder {options['local']} is in use by another run on this host: give "
            "this run another one"
        ) from error
