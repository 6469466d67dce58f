# SPDX-License-Identifier: Apache-2.0
"""Reads prepared shards as batches, with each sample's index and the number of the pass."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import torch
from streaming import StreamingDataLoader
from streaming.base.distributed import get_local_rank

from ahpa_scale.data.card import read_card
from ahpa_scale.data.host_lock import alone_on_host
from ahpa_scale.data.latents import LatentStream
from ahpa_scale.data.leftovers import search_closes_its_handles
from ahpa_scale.data.mix import Member, MixCard, Wanted
from ahpa_scale.data.opening import OpenSet, open_sets
from ahpa_scale.data.sharing import hold_cache
from ahpa_scale.data.tracker import shield_tracker
from ahpa_scale.data.workers import Loader, begin_worker
from ahpa_scale.errors import UserError


def build_loader(
    data: str | MixCard,
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
    """A loader of prepared data that can resume in mid-epoch.

    The global batches depend on their size, the seed and `num_canonical_nodes`, and not on the
    numbers of nodes, ranks and workers.

    Args:
        data: a data set, a local folder or a URL; or several, from `read_mix`. Of several, those
            in local folders are read where they lie.
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
    members: tuple[Member, ...]
    if isinstance(data, MixCard):
        members = data.members
        levels = data.prior_columns if levels is None else levels
    else:
        members = (Member(Wanted(data), read_card(data)),)
    stream = _open_stream(
        open_sets(members, local, in_place=isinstance(data, MixCard), with_levels=levels != ()),
        levels=levels,
        batch_size=batch_size,
        shuffle=shuffle,
        shuffle_seed=seed,
        num_canonical_nodes=num_canonical_nodes,
        cache_limit=cache_limit,
        drop_last=drop_last,
    )
    loader = Loader(
        stream,
        batch_size=batch_size,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        drop_last=drop_last,
        worker_init_fn=begin_worker,
    )
    if len(loader) == 0:
        named = ", ".join(member.wanted.url for member in members)
        raise UserError(
            f"{named}: a pass has {stream.epoch_size} samples: too few for one batch of "
            f"{batch_size} on each rank"
        )
    return loader


def _open_stream(sets: Sequence[OpenSet], **options: Any) -> LatentStream:
    shield_tracker()
    # An error's traceback is a cycle. A stream that only a traceback holds still has its cache.
    gc.collect()
    caches = [each.local for each in sets if each.remote is not None]
    try:
        with alone_on_host(), search_closes_its_handles():
            stream = LatentStream(sets, **options)
            if get_local_rank() == 0:
                for cache in caches:
                    hold_cache(cache, stream, alone=options["cache_limit"] is not None)
            return stream
    except ValueError as error:
        if "ache limit" in str(error):
            raise UserError(f"cache_limit: {' '.join(str(error).split())}") from error
        if "Reused local directory" not in str(error):
            raise
        raise UserError(
            f"the cache folder {', '.join(caches)} is in use by another run on this host: give "
            "this run another one"
        ) from error
