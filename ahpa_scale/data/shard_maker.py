# SPDX-License-Identifier: Apache-2.0
"""Encodes and writes shards, one after the other, into the workplace."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from streaming import MDSWriter

from ahpa_scale.data import codec
from ahpa_scale.data.card import SHARD_HASH, DatasetCard
from ahpa_scale.data.encode import BatchEncoder
from ahpa_scale.data.index import INDEX_LIMIT, INDEX_NAME, parse_index
from ahpa_scale.data.reading import Batch, batches
from ahpa_scale.data.settings import PrepareSettings
from ahpa_scale.data.sources import Source
from ahpa_scale.data.workplace import ROOM, Note, Workplace
from ahpa_scale.method.level_codec import LevelCodec
from ahpa_scale.models.vae import FrozenVAE

#: Tells of pictures that were read, and of those that can't be: names and reasons.
Told = Callable[[int, dict[str, str]], None]


class ShardMaker:
    """Makes shards of one preparation.

    Args:
        settings: of the preparation, with the device of this process.
        card: the card, without the values that are known only after the pass.
        vae: the frozen autoencoder, on that device.
        pictures: the source.
        workplace: takes the shards.
        level_codec: reduces the encoder's levels; None for pooled ones.
    """

    def __init__(
        self,
        settings: PrepareSettings,
        card: DatasetCard,
        vae: FrozenVAE,
        pictures: Source,
        workplace: Workplace,
        level_codec: LevelCodec | None,
    ) -> None:
        self._workplace = workplace
        self._batches = partial(
            batches, pictures, batch_size=settings.batch_size, workers=settings.workers
        )
        self._encoder = partial(BatchEncoder, settings, card, vae, level_codec)
        self._columns = codec.columns(card)

    def make(self, shards: Iterable[tuple[int, range]], told: Told) -> None:
        """Makes the shards that it is given; `told` hears of every batch.

        Raises:
            UserError: features don't fit, or a stored type can't hold a value.
            OSError: the disk or the store refused.
        """
        shard: _Shard | None = None
        try:
            for batch in self._batches(shards=shards):
                if shard is None:
                    shard = _Shard(self._encoder(), self._columns, self._workplace)
                shard.add(batch)
                told(len(batch.pictures), {each.name: each.reason for each in batch.rejects})
                if batch.is_last:
                    shard.finish(batch.shard)
                    shard = None
        finally:
            if shard is not None:
                shard.give_up()


class _Shard:
    def __init__(
        self, encoder: BatchEncoder, columns: dict[str, str], workplace: Workplace
    ) -> None:
        self._encoder, self._workplace = encoder, workplace
        place = None if workplace.is_remote else workplace.folder
        self._room = tempfile.mkdtemp(prefix=ROOM, dir=place)
        self._writer = MDSWriter(
            out=self._room, columns=columns, hashes=[SHARD_HASH], size_limit=None
        )
        self._rejects: dict[str, str] = {}
        self._count = self._firsts = 0

    def add(self, batch: Batch) -> None:
        if batch.pictures:
            for sample in self._encoder.samples(batch.pictures):
                self._writer.write(sample)
        self._count += len(batch.pictures)
        self._firsts += sum(picture.is_first for picture in batch.pictures)
        self._rejects |= {each.name: each.reason for each in batch.rejects}

    def finish(self, number: int) -> None:
        shard, file = None, None
        if self._count:
            self._writer.finish()
            where = Path(self._room, INDEX_NAME)
            (shard,) = parse_index(where.read_bytes()[:INDEX_LIMIT], str(where)).shards
            file = Path(self._room, shard.raw_data.basename)
            shard.raw_data.basename = f"shard.{number:05d}.mds"
        state = self._encoder.state() if self._count else {}
        self._workplace.put(number, file, Note(shard, self._rejects, self._firsts), state)
        self.give_up()

    def give_up(self) -> None:
        self._writer.cancel_future_jobs()
        shutil.rmtree(self._room, ignore_errors=True)
