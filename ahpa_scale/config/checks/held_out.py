# SPDX-License-Identifier: Apache-2.0
"""Checks the held-out data of a run against the data that it trains on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ahpa_scale.config.brought import Brought, bring
from ahpa_scale.config.errors import config_error
from ahpa_scale.config.evaluation import BINS
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
