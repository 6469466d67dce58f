# SPDX-License-Identifier: Apache-2.0
"""The data sets of a run as samples, in an order that does not depend on who reads them.

Shapes: C channels, H W latent sides, S picture side, g the token grid's side.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from streaming import StreamingDataset
from streaming.base.batching import batching_methods
from streaming.base.constant import TICK
from streaming.base.dataset import NEVER, _Iterator, _ShardState
from streaming.base.world import World

from ahpa_scale.data import codec, neighbours
from ahpa_scale.data.columns import ColumnReader
from ahpa_scale.data.opening import OpenSet
from ahpa_scale.data.order import Order, deal, whole_batches
from ahpa_scale.data.whole import ShardError
from ahpa_scale.errors import UserError

#: Our name among streaming's ways to lay out a pass.
_BATCHING = "ahpa_scale"


def _work(
    stream: LatentStream, world: World, epoch: int, sample_in_epoch: int
) -> NDArray[np.int64]:
    """Lays out a pass, or what is left of it, for streaming."""
    order = stream.order().of_pass(epoch)
    return deal(order, sample_in_epoch, world, stream.batch_size, stream.drop_last)


batching_methods[_BATCHING] = _work


class _Places:
    """Finds the shard of a place, see `Order.of_pass`, in place of streaming's own finder."""

    def __init__(self, finder: Any, stride: int) -> None:
        self._finder, self._stride = finder, stride

    def __getitem__(self, place: int) -> tuple[int, int]:
        found: tuple[int, int] = self._finder[place % self._stride]
        return found


class LatentStream(StreamingDataset):
    """One or several data sets whose samples have the keys of our batches.

    Sample: `index`, `epoch`, `label` (int); `moments` [2C, H, W] float16 or `image` [3, S, S]
    uint8; `prior.<level>` [C_level, g, g] for each wanted level. Other levels are not decoded, and
    are read from disk only if they lie between wanted columns. The index of a set's sample counts
    the sets before it. The epoch is the number of times that the sample's set has been read
    before, so no sample has the same epoch twice; of a set that is read alone, it is the pass.

    Args:
        sets: the sets.
        levels: wanted levels; None for all that each set stores.
        drop_last: whether a pass leaves out what does not fill a batch on all ranks.
        options: options of StreamingDataset.

    Raises:
        UserError: a set has fewer samples in a pass than `num_canonical_nodes`.
    """

    spanner: Any

    def __init__(
        self,
        sets: Sequence[OpenSet],
        *,
        levels: tuple[str, ...] | None,
        drop_last: bool,
        **options: Any,
    ) -> None:
        wanted = [codec.wanted_columns(each.member.card, levels) for each in sets]
        self.sets, self.drop_last = sets, drop_last
        self._at_hand: set[int] = set()
        self._failure: BaseException | None = None
        super().__init__(streams=[each.stream() for each in sets], **options)
        self.batching_method = _BATCHING
        self._parts = [each.part() for each in sets]
        self._lay_out()
        self.spanner = _Places(self.spanner, self.num_samples)
        in_place_S = np.array([sets[place].remote is None for place in self.stream_per_shard])
        self.shards: list[ColumnReader] = [
            ColumnReader(shard, wanted[place], evicts=not stays)
            for shard, place, stays in zip(
                self.shards, self.stream_per_shard, in_place_S, strict=True
            )
        ]
        self._in_place = np.flatnonzero(in_place_S)
        if self._unique_rank_world.is_local_leader:
            self.cache_usage -= sum(self.shards[shard].raw_data.bytes for shard in self._in_place)

    def _lay_out(self) -> None:
        """Sets the lengths of a pass, of all ranks and of one."""
        nodes = self.num_canonical_nodes
        for part, each in zip(self._parts, self.sets, strict=True):
            if min(part.count, len(part.indices_K)) < nodes:
                raise UserError(
                    f"{each.member.wanted.url}: a pass takes {part.count} samples out of "
                    f"{len(part.indices_K)}, too few for num_canonical_nodes {nodes}"
                )
        self.epoch_size = sum(part.count // nodes * nodes for part in self._parts)
        ranks, size = self._parallel_rank_world.num_ranks, self.epoch_size
        if self.drop_last:
            size = whole_batches(size, ranks, self.batch_size)
        self.length = -(-size // ranks)

    def order(self) -> Order:
        """The order of samples, with what a checkpoint says of it."""
        return Order(
            parts=self._parts,
            stride=self.num_samples,
            nodes=self.num_canonical_nodes,
            shuffle=self.shuffle,
            seed=self.shuffle_seed,
            block=self.shuffle_block_size,
        )

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
        """Replaces streaming's, which waits for good if a shard is evicted between its arrival and
        the look for it: so a cache that is small for the order would stop a run without a word.
        """
        with self._failing_aloud(it):
            while not self._ended(it) and it.ready_index < it.total:
                if self.predownload < it.ready_index - it.yield_index:
                    sleep(TICK)
                    continue
                place = it.sample_ids[it.ready_index]
                while place != -1 and not self._ended(it) and not self._arrived(place):
                    sleep(TICK)
                it.ready_index += 1
            it.on_exit()

    def _ended(self, it: _Iterator) -> bool:
        return bool(it.should_exit() or self._event.is_set())

    def _arrived(self, place: int) -> bool:
        """Whether a sample's shard is here; if nobody fetches it, it is fetched."""
        shard_id, _ = self.spanner[place]
        if self._shard_states[shard_id] == _ShardState.REMOTE:
            self.prepare_shard(shard_id, False)
        return bool(self._shard_states[shard_id] == _ShardState.LOCAL)

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

    def _evict_coldest_shard(self) -> None:
        # What is read in place is no part of the cache, and streaming notes each access to it.
        self._shard_access_times.numpy()[self._in_place] = NEVER
        super()._evict_coldest_shard()

    def get_item(self, sample_id: int, retry: int = 7) -> dict[str, Any]:
        """One sample, by its place in a pass (see `Order.of_pass`) or by its index alone.

        Raises:
            UserError: a label without a class, values that are not finite, or a picture that does
                not fit the card; the message names sample and shard.
        """
        epoch, index = divmod(int(sample_id), self.num_samples)
        try:
            stored = super().get_item(index, retry)
        except ShardError:
            if not self._dropped(index):
                raise
            stored = super().get_item(index, retry)
        shard_id, _ = self.spanner[index]
        found = self.sets[self.stream_per_shard[shard_id]]
        card, labels = found.member.card, found.member.labels
        for column, value in stored.items():
            flaw = codec.flaw(column, value, card)
            if flaw is not None:
                shard = self.shards[shard_id].raw_data.basename
                where = f"sample {index - found.first} in {shard}"
                where += f" of {found.member.wanted.url}" if len(self.sets) > 1 else ""
                raise UserError(f"{where}: {flaw}; prepare the data again")
        label = int(stored.pop("label"))
        sample: dict[str, Any] = {
            "index": index,
            "epoch": epoch,
            "label": label if labels is None else labels[label],
        }
        for column, value in stored.items():
            sample[column] = codec.decode(column, value, card, found.codec)
        return sample

    def _dropped(self, index: int) -> bool:
        """Drops a cached shard of a wrong size, to fetch it again; False if there is no cache."""
        shard_id, _ = self.spanner[index]
        info, stream = self.shards[shard_id].raw_data, self.streams[self.stream_per_shard[shard_id]]
        path = Path(stream.local, info.basename)
        if stream.remote is None:
            return False
        with FileLock(self._cache_filelock_path):
            # Another worker may have dropped it already.
            if path.exists() and path.stat().st_size != info.bytes:
                self._evict_shard(shard_id)
        return True
