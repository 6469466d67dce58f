# SPDX-License-Identifier: Apache-2.0
"""Checks the evaluation section: the held-out data against those that the run trains on, and what
samples are compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ahpa_scale import storage
from ahpa_scale.config.brought import Brought, bring
from ahpa_scale.config.errors import config_error
from ahpa_scale.config.evaluation import BINS
from ahpa_scale.config.networks import read_networks
from ahpa_scale.config.schema import Config
from ahpa_scale.data.card import DatasetCard, read_card
from ahpa_scale.data.identity import identity
from ahpa_scale.errors import UserError

_KEY = "evaluation.data"


def check_held_out(
    config: Config, card: DatasetCard, tell: Callable[[str], None]
) -> Brought | None:
    """The held-out set, fitted to the run's own; None if the run looks at none.

    Args:
        config: the run's configuration.
        card: card of the data that it trains on.
        tell: prints a warning.

    Raises:
        ConfigError: there is no whole data set, or it doesn't fit the run's.
    """
    place = config.evaluation.data
    if place is None:
        return None
    try:
        held_out = read_card(place)
        problem = next(_problems(config, card, held_out), None)
        if problem is not None:
            raise UserError(f"{place} {problem}")
        brought = bring(config, held_out, place, identity(card), tell)
    except UserError as error:
        raise config_error(config, _KEY, str(error)) from None
    if brought.known:
        tell(f"warning: {_KEY} {place} is what the run trains on: its loss is not a held-out one")
    return brought


def check_samples(config: Config) -> None:
    """Check that samples have something to be compared with.

    Raises:
        ConfigError: there is no reference, or no single network that is installed.
    """
    chosen = config.evaluation
    if chosen.samples is None:
        return
    if chosen.reference is None or not chosen.reference.endswith(".npz"):
        problem = (
            f"evaluation.samples={chosen.samples} needs the .npz of the real pictures' statistics: "
            "`ahpa-scale compare PICTURES --save-statistics FILE.npz` writes one"
        )
        raise config_error(config, "evaluation.reference", problem)
    try:
        networks = read_networks(chosen.features)
    except UserError as error:
        problem = str(error).removeprefix("--features: ")
        raise config_error(config, "evaluation.features", problem) from None
    if len(networks) > 1:
        raise config_error(config, "evaluation.features", "name one network")


def check_reference(config: Config) -> None:
    """Check that the reference is there.

    Raises:
        ConfigError: it is not, or the store refuses.
        UnreachableError: the store does not answer.
    """
    place = config.evaluation.reference
    if place is None:
        return
    try:
        there = storage.exists(place)
    except storage.RefusedError as error:
        raise config_error(config, "evaluation.reference", str(error)) from None
    if not there:
        raise config_error(config, "evaluation.reference", f"there is no file {place}")


def pictures_of(config: Config, held_out: DatasetCard) -> int:
    """How many held-out pictures are looked at."""
    return min(held_out.num_samples, config.evaluation.pictures or held_out.num_samples)


def _problems(config: Config, card: DatasetCard, held_out: DatasetCard) -> Iterator[str]:
    if held_out.kind != "latents":
        yield f"holds {held_out.kind}: prepare it with --kind latents"
    if held_out.vae.identity != card.vae.identity:
        yield f"was made with another VAE, {held_out.vae.path!r}, than the run's data"
    if held_out.latent_shape != card.latent_shape:
        theirs, ours = list(held_out.latent_shape), list(card.latent_shape)
        yield f"holds latents {theirs}, and the run's data {ours}"
    count = pictures_of(config, held_out)
    if count < BINS:
        yield f"gives {count} pictures, which can't fill {BINS} bins of the noise level"
