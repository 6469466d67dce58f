# SPDX-License-Identifier: Apache-2.0
"""The identity of a data set, which checkpoints keep. Does not import torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ahpa_scale import typed_json
from ahpa_scale.data.card import DatasetCard
from ahpa_scale.errors import UserError

#: The fields that identify a set, the most important first, and their names in messages.
_WORDS = {
    "vae": "VAE",
    "scaling": "scaling of latents",
    "classes": "classes",
    "kind": "kind",
    "image_size": "size of pictures",
    "latent_shape": "shape of latents",
    "grid": "token grid",
    "levels": "levels",
    "prior_dtype": "number format of priors",
    "codec": "codec of levels",
    "external_channels": "channels of features",
    "num_samples": "number of pictures",
    "fingerprint": "fingerprint",
    "sets": "sets that are mixed",
    "shares": "shares of the sets",
    "skipped": "skipped pictures",
}
#: Explains a difference; alone it is none.
_TORCH = "torch"
#: The fields that a trained model depends on.
_MODELS = ("vae", "scaling")
_LONGEST = 40


def identity(card: DatasetCard) -> dict[str, Any]:
    """The fields that identify the set, ready for JSON."""
    mixture = card.mixture
    told = {name: getattr(card, name) for name in (*_WORDS, _TORCH) if name not in mixture}
    told |= mixture
    told |= {"codec": None if card.codec is None else card.codec.digest[:16]}
    told |= {"vae": card.vae.identity, "scaling": asdict(card.scaling), "levels": card.level_names}
    plain: dict[str, Any] = json.loads(json.dumps(told))  # lists for tuples, as JSON reads them
    return plain


def differences(before: Mapping[str, Any], card: DatasetCard) -> str | None:
    """How a set differs from the one that a checkpoint names; None if it does not."""
    # Older checkpoints know of single sets that are read whole.
    unmixed = dict.fromkeys(card.mixture)
    return _differing({**unmixed, **before}, identity(card), list(_WORDS))


def model_differences(before: Mapping[str, Any], card: DatasetCard) -> str | None:
    """As `differences`, but only in the fields that a trained model depends on."""
    return _differing(before, identity(card), _MODELS)


def _differing(
    before: Mapping[str, Any], now: Mapping[str, Any], names: Sequence[str]
) -> str | None:
    changes = [
        f"{_WORDS[name]} ({_shown(before[name])} then, {_shown(now[name])} now)"
        for name in names
        if name in before and before[name] != now[name]
    ]
    torches = before.get(_TORCH), now[_TORCH]
    if changes and "fingerprint" in names and all(torches) and torches[0] != torches[1]:
        changes.append(f"encoded with torch {torches[0]} then, {torches[1]} now")
    return ", ".join(changes) or None


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def told_classes(told: Mapping[str, Any]) -> list[str]:
    """The class names that a checkpoint holds.

    Raises:
        UserError: they are not a list of names.
    """
    return typed_json.fit(list[str], told.get("classes"), "the classes that the checkpoint tells")


def moved_class(before: Sequence[str], now: Sequence[str]) -> str | None:
    """Text about a class whose number differs between the lists; None if there is none."""
    number = {name: label for label, name in enumerate(before)}
    for label, name in enumerate(now):
        if number.get(name, label) != label:
            return f"class {name!r} is number {number[name]} in the one and {label} in the other"
    return None


def labels_by_name(
    trained: Sequence[str],
    other: Sequence[str],
    where: str,
    whose: str = "that the model was trained on",
) -> list[int] | None:
    """The labels of a trained model for the classes of another set, matched by name.

    Args:
        trained: class names of the set that the model was trained on, by label.
        other: class names of the other set.
        where: the other set, for the message.
        whose: completes "the classes ..." in the message.

    Returns:
        The model's label for each label of the other set; None if they are the same.

    Raises:
        UserError: the model does not know one of the classes.
    """
    if list(trained) == list(other):
        return None
    number = {name: label for label, name in enumerate(trained)}
    strange = next((name for name in other if name not in number), None)
    if strange is not None:
        raise UserError(
            f"{where} has the class {strange!r}, which is none of the {len(trained)} classes "
            f"{whose} ({', '.join(trained[:3])}, ...): prepare it with those"
        )
    return [number[name] for name in other]
