# SPDX-License-Identifier: Apache-2.0
"""The evaluation section -> the callback that measures held-out loss."""

from __future__ import annotations

from pathlib import Path

from composer.utils import dist

from ahpa_scale import storage
from ahpa_scale.callbacks import HeldOutLoss
from ahpa_scale.checkpoint.best import Contest
from ahpa_scale.config.brought import Brought
from ahpa_scale.config.checks.held_out import pictures_of
from ahpa_scale.config.evaluation import BINS
from ahpa_scale.config.schema import Config
from ahpa_scale.data.shares import Share
from ahpa_scale.data.stream import build_loader
from ahpa_scale.preemption import Requests

#: Folder below output_dir for a node's copy of held-out data.
_CACHE = ".held-out-node{node}"


def build_held_out(
    config: Config, held_out: Brought | None, contest: Contest, requests: Requests | None
) -> list[HeldOutLoss]:
    """Builds the callback if the run looks at held-out data. Every rank must call it."""
    chosen, place = config.evaluation, config.evaluation.data
    if held_out is None or place is None:
        return []
    ranks, count = dist.get_world_size(), pictures_of(config, held_out.card)
    micro = config.device_train_microbatch_size
    # What training takes with gradients, fits without.
    most = micro if isinstance(micro, int) else config.global_train_batch_size // ranks
    loader = build_loader(
        place,
        local=_cache(config) if storage.is_remote(place) else None,
        batch_size=1,
        levels=(),
        shuffle=False,
        drop_last=False,
    )
    share = Share(
        loader.dataset,
        count,
        most,
        rank=dist.get_global_rank(),
        ranks=ranks,
        labels=held_out.labels,
    )
    facts = {"data": held_out.card.fingerprint, "pictures": count}
    return [
        HeldOutLoss(chosen.interval, share, facts, contest=contest, requests=requests, bins=BINS)
    ]


def _cache(config: Config) -> str:
    """A folder of this node. Each data set has its own sub-folder in it."""
    if config.data.remote is not None:
        return str(config.data.local)
    return str(Path(config.output_dir, _CACHE.format(node=dist.get_node_rank())))
