# SPDX-License-Identifier: Apache-2.0
"""Checks the configuration against its data set. Such mistakes would otherwise fail, or train
nonsense, much later.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ahpa_scale.config.checks.levels import known_levels
from ahpa_scale.config.errors import choices, config_error
from ahpa_scale.config.fitted import fitted
from ahpa_scale.config.schema import Config
from ahpa_scale.config.targets import Targets, resolve_targets
from ahpa_scale.errors import UserError
from ahpa_scale.level_names import single_levels
from ahpa_scale.models.vae_config import (
    DEMO_VAE,
    KNOWN_VAES,
    LatentScaling,
    downsample,
    load_vae_config,
)

if TYPE_CHECKING:
    from ahpa_scale.data.card import DatasetCard

#: In the shipped YAMLs, in place of a name that only the user knows.
PLACEHOLDER = "YOUR-BUCKET"


def read_data_card(config: Config) -> DatasetCard:
    """Read the card of the data set that `config` names, from its store if it has one; of several
    sets, the card of their mixture.

    Raises:
        ConfigError: there is no whole data set (the message says how to prepare one), or sets do
            not fit one another.
    """
    from ahpa_scale.data.card import read_card
    from ahpa_scale.data.mix import MemberError, Wanted, read_mix

    check_placeholders(config)
    data = config.data
    try:
        if data.streams is None:
            return read_card(data.places[0])
        sets = [Wanted(s.url, s.proportion, s.repeat or 1.0, s.skip) for s in data.streams]
        return read_mix(sets, config.model.unconditional)
    except MemberError as error:
        key = f"data.streams[{error.place}].{error.key}"
        raise config_error(config, key, str(error)) from None
    except UserError as error:
        raise config_error(config, data.key, str(error)) from None


def check_placeholders(config: Config) -> None:
    """Refuse places that still have the placeholder of the shipped YAMLs.

    Raises:
        ConfigError: one has it.
    """
    places = {
        "data.local": config.data.local,
        "data.remote": config.data.remote,
        "checkpoint.save_folder": config.checkpoint.save_folder,
        "evaluation.data": config.evaluation.data,
        "evaluation.reference": config.evaluation.reference,
    }
    for number, stream in enumerate(config.data.streams or ()):
        places |= {f"data.streams[{number}].url": stream.url}
    for key, place in places.items():
        if place is not None and PLACEHOLDER in place:
            raise config_error(
                config, key, f"put your own bucket in place of {PLACEHOLDER} in {place}"
            )


def check_data(config: Config, card: DatasetCard) -> Targets:
    """Check a configuration against its data set's card. `check_vae_weights` checks the VAE's
    weights, once it is loaded.

    Returns:
        The targets of the run's alignment.

    Raises:
        ConfigError: the first mismatch found.
    """
    config = fitted(config, card)
    checks: tuple[Callable[[Config, DatasetCard], None], ...] = (
        _check_kind,
        _check_shape,
        _check_classes,
        _check_vae,
    )
    for check in checks:
        check(config, card)
    vae = load_vae_config(config.vae.path)
    targets = resolve_targets(config, card.level_names if vae is None else known_levels(vae))
    assert targets is not None, "the levels are known"
    if not config.data.online:
        _check_priors(config, card, targets)
    return targets


def check_vae_weights(config: Config, card: DatasetCard, identity: str) -> None:
    """Check that the loaded VAE is the one that made the data set, down to its weights.

    Args:
        config: the configuration.
        card: the data set's card.
        identity: `FrozenVAE.identity` of the loaded VAE.

    Raises:
        ConfigError: it is another VAE.
    """
    if identity != card.vae.identity:
        raise config_error(
            config,
            "vae.path",
            f"{config.vae.path!r} has other weights (identity {identity}) than the VAE that made "
            f"the data set, {card.vae.path!r} ({card.vae.identity}); name that one, or prepare the "
            "data again",
        )


def _check_kind(config: Config, card: DatasetCard) -> None:
    if config.data.online and card.kind != "images":
        raise config_error(
            config,
            "data.online",
            "the data set holds cached latents and no pictures; set it to false",
        )
    if not config.data.online and card.kind != "latents":
        raise config_error(
            config,
            "data.online",
            "the data set holds pictures and no latents; set it to true, or prepare latents",
        )


def _check_shape(config: Config, card: DatasetCard) -> None:
    channels, height, width = card.latent_shape
    if config.model.in_channels != channels:
        raise config_error(
            config,
            "model.in_channels",
            f"{config.model.in_channels} does not fit the data set, whose latents have {channels}",
        )
    if (height, width) != (config.model.input_size,) * 2:
        raise config_error(
            config,
            "model.input_size",
            f"{config.model.input_size} does not fit the data set, whose latents are "
            f"{height}x{width}",
        )


def _check_classes(config: Config, card: DatasetCard) -> None:
    if config.model.num_classes != card.num_classes and not config.model.unconditional:
        raise config_error(
            config,
            "model.num_classes",
            f"{config.model.num_classes} does not fit the data set, which has {card.num_classes}; "
            "1 ignores its labels",
        )


def _check_vae(config: Config, card: DatasetCard) -> None:
    path, other = config.vae.path, card.vae.path
    named = {DEMO_VAE, *KNOWN_VAES}
    # Folders move between machines and are compared by their weights; published names must agree.
    if path != other and path in named and other in named:
        problem = f"{path!r} is not the VAE of the data set; that is {other!r}"
        raise config_error(config, "vae.path", problem)
    vae = load_vae_config(path)
    if vae is None:
        return
    if downsample(vae) != card.vae.downsample:
        problem = f"{path!r} shrinks pictures {downsample(vae)} times, the data set's VAE did "
        raise config_error(config, "vae.path", problem + f"{card.vae.downsample} times")
    # An image set has not been scaled yet.
    scaled = card.kind == "latents" and card.scaling.kind == "config"
    if scaled and LatentScaling.from_config(vae) != card.scaling:
        problem = f"{path!r} scales latents otherwise than the VAE of the data set"
        raise config_error(config, "vae.path", problem)
    levels = known_levels(vae)
    if any(name not in levels for name in card.level_names):
        raise config_error(
            config,
            "vae.path",
            f"{path!r} lacks encoder levels of the data set: another VAE wrote it",
        )


def _check_priors(config: Config, card: DatasetCard, targets: Targets) -> None:
    columns = card.prior_columns
    options = dict.fromkeys((*columns, *single_levels(held=columns)))
    for level in targets.stored:
        if level not in columns:
            problem = f"{_lacking(card, level)} has no {level!r}; {choices(level, options)}"
            raise config_error(config, targets.key, problem)
    grid = config.model.geometry().grid
    if targets.stored and card.grid != grid:
        raise config_error(
            config,
            "model.name",
            f"{config.model.name} has a grid of {grid}x{grid} tokens, and the data set's "
            "priors lie on "
            f"{card.grid}x{card.grid}; prepare them for this grid",
        )


def _lacking(card: DatasetCard, level: str) -> str:
    """Names the set that lacks a level."""
    from ahpa_scale.data.mix import MixCard

    members = card.members if isinstance(card, MixCard) else ()
    lacking = (m.wanted.url for m in members if level not in m.card.prior_columns)
    return next(lacking, "the data set")
