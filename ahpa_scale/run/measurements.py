# SPDX-License-Identifier: Apache-2.0
"""The evaluation section -> the callbacks that measure the averaged weights while training."""

from __future__ import annotations

from pathlib import Path

from composer.devices import Device
from composer.utils import dist

from ahpa_scale import storage
from ahpa_scale.callbacks import HeldOutLoss
from ahpa_scale.callbacks.measuring import Measuring
from ahpa_scale.checkpoint.best import Contest
from ahpa_scale.config.brought import Brought
from ahpa_scale.config.checks.held_out import pictures_of
from ahpa_scale.config.evaluation import BINS
from ahpa_scale.config.schema import Config
from ahpa_scale.data.shares import Share
from ahpa_scale.data.stream import build_loader
from ahpa_scale.models.vae import FrozenVAE
from ahpa_scale.preemption import Requests
from ahpa_scale.run.sample_distance import build_sample_distance

#: Folder below output_dir for a node's copy of held-out data.
_CACHE = ".held-out-node{node}"


def build_measurements(
    config: Config,
    vae: FrozenVAE | None,
    device: Device,
    held_out: Brought | None,
    contest: Contest,
    requests: Requests | None,
) -> list[Measuring]:
    """Builds the callbacks. Every rank must call it.

    The distance of samples decides which checkpoint is the best one, if it is measured.

    Args:
        config: a configuration that passed its checks.
        vae: decodes samples; None if none are drawn.
        device: of this rank.
        held_out: the held-out set, from `check_held_out`; None if the run looks at none.
        contest: finds the best checkpoint.
        requests: requests from outside.

    Raises:
        ConfigError: samples can't be compared with the reference.
        UnreachableError: a store, or the hub, does not answer.
    """
    most = _pictures_per_pass(config)
    distance = build_sample_distance(config, vae, device, contest, requests, most)
    return [*_held_out(config, held_out, None if distance else contest, requests, most), *distance]


def _held_out(
    config: Config,
    held_out: Brought | None,
    contest: Contest | None,
    requests: Requests | None,
    batch_size: int,
) -> list[HeldOutLoss]:
    chosen, place = config.evaluation, config.evaluation.data
    if held_out is None or place is None:
        return []
    ranks, count = dist.get_world_size(), pictures_of(config, held_out.card)
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
        batch_size,
        rank=dist.get_global_rank(),
        ranks=ranks,
        labels=held_out.labels,
    )
    facts = {"data": held_out.card.fingerprint, "pictures": count}
    return [
        HeldOutLoss(chosen.interval, share, facts, contest=contest, requests=requests, bins=BINS)
    ]


def _pictures_per_pass(config: Config) -> int:
    """Pictures per forward pass and rank: what training takes with gradients fits without."""
    micro = config.device_train_microbatch_size
    if isinstance(micro, int):
        return micro
    return config.global_train_batch_size // dist.get_world_size()


def _cache(config: Config) -> str:
    """A folder of this node. Each data set has its own sub-folder in it."""
    if config.data.cached:
        return str(config.data.local)
    return str(Path(config.output_dir, _CACHE.format(node=dist.get_node_rank())))
