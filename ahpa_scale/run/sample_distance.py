# SPDX-License-Identifier: Apache-2.0
"""The evaluation section -> the callback that measures how far samples are from real pictures."""

from __future__ import annotations

import tempfile

from composer.devices import Device
from composer.utils import dist

from ahpa_scale.callbacks import SampleDistance
from ahpa_scale.checkpoint.best import Contest
from ahpa_scale.config.errors import config_error
from ahpa_scale.config.networks import read_networks
from ahpa_scale.config.schema import Config
from ahpa_scale.errors import UserError
from ahpa_scale.evaluation.feature_sets import FeatureSet
from ahpa_scale.evaluation.measures import Distances
from ahpa_scale.evaluation.networks import Network, open_network
from ahpa_scale.evaluation.picture_sets import statistics_of
from ahpa_scale.models.vae import FrozenVAE
from ahpa_scale.preemption import Requests


def build_sample_distance(
    config: Config,
    vae: FrozenVAE | None,
    device: Device,
    contest: Contest,
    requests: Requests | None,
    batch_size: int,
) -> list[SampleDistance]:
    """Builds the callback if the run compares samples. Every rank must call it.

    Raises:
        ConfigError: fewer samples than ranks, no such network, or statistics of another one.
        UnreachableError: a store, or the hub, does not answer.
    """
    samples, place = config.evaluation.samples, config.evaluation.reference
    if samples is None or place is None:
        return []
    assert vae is not None, "loaded for it"
    ranks = dist.get_world_size()
    if samples < ranks:
        problem = f"{samples} can't be shared by {ranks} ranks: draw one for each at least"
        raise config_error(config, "evaluation.samples", problem)
    network = _open_network(config, device)
    real, digest = _reference(config, place, network)
    settings = config.sampling.sampler()
    facts = {"samples": samples, "reference": digest, **network.facts, **settings.told()}
    return [
        SampleDistance(
            config.evaluation.interval,
            facts,
            distances=Distances(real),
            network=network,
            decoder=vae,
            samples=samples,
            settings=settings,
            batch_size=batch_size,
            contest=contest,
            requests=requests,
        )
    ]


def _open_network(config: Config, device: Device) -> Network:
    (chosen,) = read_networks(config.evaluation.features)
    try:
        with dist.run_local_rank_zero_first():  # it may be fetched, once per host
            return open_network(chosen.name, device._device, chosen.weights, chosen.side)
    except UserError as error:
        raise config_error(config, "evaluation.features", str(error)) from None


def _reference(config: Config, place: str, network: Network) -> tuple[FeatureSet, str]:
    try:
        with tempfile.TemporaryDirectory(prefix="ahpa-scale-") as room:
            return statistics_of(place, room, network)
    except UserError as error:
        raise config_error(config, "evaluation.reference", str(error)) from None
