# SPDX-License-Identifier: Apache-2.0
"""Fits another data set to a trained model: to the model's latent scaling and class labels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ahpa_scale import typed_json
from ahpa_scale.config.schema import Config
from ahpa_scale.data.card import DatasetCard, read_card
from ahpa_scale.data.identity import labels_by_name, told_classes
from ahpa_scale.errors import UserError
from ahpa_scale.models.vae_config import LatentScaling


@dataclass(frozen=True)
class Brought:
    """A data set that is fitted to a trained model.

    Attributes:
        card: the set's card, with the scaling and the classes that the model was trained with.
        labels: the model's label for each label of the set; None if they are the same.
        known: whether it is the set that the model was trained on.
    """

    card: DatasetCard
    labels: list[int] | None = None
    known: bool = False


def bring(
    config: Config,
    card: DatasetCard,
    place: str,
    told: Mapping[str, Any] | None,
    tell: Callable[[str], None],
) -> Brought:
    """Fits a data set to what a model was trained on.

    Args:
        config: the run's configuration.
        card: the set's card.
        place: the set's folder or URL.
        told: the checkpoint's facts about the run's own set; None, as in older checkpoints, reads
            the card of that set.
        tell: prints a warning.

    Raises:
        UserError: the set has a class that the model does not know, or it has a scaling of its own
            and the run's scaling can't be read.
    """
    try:
        classes, scaling, fingerprints = _trained_on(config, told)
    except (UserError, OSError) as error:
        if card.scaling.kind == "channel":
            raise UserError(
                f"latents of {place} are scaled by numbers of their own, and those of the run's "
                f"own data can't be read: {error}"
            ) from None
        if not config.model.unconditional:
            tell(
                f"warning: nothing tells the classes that the model was trained on: the labels of "
                f"{place} are taken as they are"
            )
        return Brought(card)
    fitting, known = replace(card, scaling=scaling), card.fingerprint in fingerprints
    if config.model.unconditional:
        return Brought(fitting, None, known)
    labels = labels_by_name(classes, card.classes, place)
    return Brought(replace(fitting, classes=classes), labels, known)


def _trained_on(
    config: Config, told: Mapping[str, Any] | None
) -> tuple[tuple[str, ...], LatentScaling, Collection[str]]:
    """Classes and scaling of the run's own data, and the fingerprint of each set."""
    if told is None:
        card = read_card(config.data.places[0])
        return card.classes, card.scaling, (card.fingerprint,)
    scaling = typed_json.fit(LatentScaling, told.get("scaling"), "the checkpoint's data_set")
    sets = typed_json.fit(list[str], told.get("sets") or [], "the sets that the checkpoint tells")
    fingerprints = sets or [str(told.get("fingerprint"))]
    return tuple(told_classes(told)), scaling, fingerprints
