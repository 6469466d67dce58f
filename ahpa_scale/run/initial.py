# SPDX-License-Identifier: Apache-2.0
"""Starts a new run from weights alone: `model.weights`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

from composer.utils import dist

from ahpa_scale.config.errors import ConfigError
from ahpa_scale.config.schema import Config
from ahpa_scale.data.card import DatasetCard
from ahpa_scale.data.identity import moved_class
from ahpa_scale.errors import UserError
from ahpa_scale.interchange.sit import with_time_reversed, without_sigma
from ahpa_scale.interchange.stored import StoredModel
from ahpa_scale.models.backbone import Backbone
from ahpa_scale.run.drawable import network_of
from ahpa_scale.run.trained import take_weights
from ahpa_scale.run.weights import as_float32, open_weights
from ahpa_scale.unreachable import UnreachableError

_KEY = "model.weights"
_LABELS = "y_embedder.embedding_table.weight"
#: What must agree, and the key that says it.
_SHAPE = {
    "patch_size": "model.name",
    "input_size": "model.input_size",
    "in_channels": "model.in_channels",
    "depth": "model.depth",
    "width": "model.width",
    "heads": "model.heads",
    "qk_norm": "model.qk_norm",
}
_log = logging.getLogger(__name__)


def take_initial_weights(config: Config, card: DatasetCard, backbone: Backbone) -> None:
    """Loads the weights that the configuration names into a new backbone. Every rank must call it,
    before the backbone is sharded.

    Weights of the official SiT are turned into our time. A label table of other classes stays as it
    was drawn. What differs otherwise, but can be learnt again, is logged.

    Args:
        config: the run's configuration; `model.weights` is set.
        card: card of its data set.
        backbone: as it was built.

    Raises:
        ConfigError: there are no such weights, they are damaged, or they are of another shape.
        UnreachableError: a store does not answer.
    """
    assert config.model.weights is not None
    try:
        stored = _as_trained_here(open_weights(config.model.weights))
        _check_shape(stored, config)
        weights = as_float32(stored.weights)
        own = backbone.state_dict()[_LABELS]
        remarks = [*stored.remarks, *_differences(stored, config, card)]
        if weights[_LABELS].shape != own.shape:
            there, here = stored.description.num_classes, config.model.num_classes
            remarks.append(
                f"its label table is of {there} classes ({len(weights[_LABELS])} rows), the run's "
                f"of {here} ({len(own)} rows): that table is drawn anew, and nothing else"
            )
            weights[_LABELS] = own
        take_weights(backbone, weights, stored.place)
    except UnreachableError:
        raise
    except (UserError, OSError) as error:
        raise ConfigError(config.source_of(_KEY), _KEY, str(error)) from None
    if dist.get_global_rank() == 0:
        for remark in remarks:
            _log.warning("weights: %s: %s", stored.place, remark)


def _as_trained_here(stored: StoredModel) -> StoredModel:
    """The weights for a network that predicts velocities in our time, and nothing else."""
    network_of(stored)  # refuses weights that do not fit their description
    if stored.description.convention != "velocity":
        stored = with_time_reversed(stored)
        stored = replace(stored, remarks=(*stored.remarks, "SiT's time is turned into ours"))
    return without_sigma(stored)


def _check_shape(stored: StoredModel, config: Config) -> None:
    wanted = {**config.model.model_dump(), **config.model.geometry()._asdict()}
    for name, key in _SHAPE.items():
        there = getattr(stored.description, name)
        if there != wanted[name]:
            raise UserError(
                f"{stored.place} has {name.replace('_', ' ')} {there}, and the run {wanted[name]}: "
                f"name weights of this shape, or change {key}"
            )


def _differences(stored: StoredModel, config: Config, card: DatasetCard) -> Iterator[str]:
    """What the run has to learn anew, because the weights were trained on something else."""
    told = stored.description
    if told.path != config.flow.path:
        yield f"trained on the path {told.path}, and the run is on {config.flow.path}"
    if told.vae_identity and told.vae_identity != card.vae.identity:
        yield f"trained on latents of the VAE {told.vae_identity}, not of {card.vae.identity}"
    elif told.scaling is not None and told.scaling != card.scaling:
        yield "trained on latents that were scaled by other numbers than the run's"
    named = told.classes and len(told.classes) == len(card.classes)
    if named and told.classes != card.classes and not config.model.unconditional:
        what = moved_class(told.classes, card.classes) or "the classes have other names"
        yield f"its label table is kept, but {what}"
