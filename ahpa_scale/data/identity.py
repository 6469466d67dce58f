# SPDX-License-Identifier: Apache-2.0
"""What tells a data set from another, kept with what was trained on it. Free of torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ahpa_scale import typed_json
from ahpa_scale.data.card import DatasetCard
from ahpa_scale.errors import UserError

#: What is told of a set, the most telling first, and how a line calls it.
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
    "external_channels": "channels of features",
    "num_samples": "number of pictures",
    "fingerprint": "fingerprint",
}
#: What a trained model itself depends on.
_MODELS = ("vae", "scaling")
_LONGEST = 40


def identity(card: DatasetCard) -> dict[str, Any]:
    """What tells the set from others, ready for JSON."""
    told = {name: getattr(card, name) for name in _WORDS}
    told |= {"vae": card.vae.identity, "scaling": asdict(card.scaling), "levels": card.level_names}
    plain: dict[str, Any] = json.loads(json.dumps(told))  # lists for tuples, as it is read back
    return plain


def differences(before: Mapping[str, Any], card: DatasetCard) -> str | None:
    """In what a set differs from the one that a checkpoint tells of; None if in nothing."""
    return _differing(before, identity(card), list(_WORDS))


def model_differences(before: Mapping[str, Any], card: DatasetCard) -> str | None:
    """As `differences`, of what a model that was trained on the one set takes for granted."""
    return _differing(before, identity(card), _MODELS)


def _differing(
    before: Mapping[str, Any], now: Mapping[str, Any], names: Sequence[str]
) -> str | None:
    found = [
        f"{_WORDS[name]} ({_shown(before[name])} then, {_shown(now[name])} now)"
        for name in names
        if name in before and before[name] != now[name]
    ]
    return ", ".join(found) or None


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def told_classes(told: Mapping[str, Any]) -> list[str]:
    """The class names that a checkpoint tells.

    Raises:
        UserError: they are no names.
    """
    return typed_json.fit(list[str], told.get("classes"), "the classes that the checkpoint tells")


def moved_class(before: Sequence[str], now: Sequence[str]) -> str | None:
    """A class that both lists name under different numbers, in words; None if there is none."""
    number = {name: label for label, name in enumerate(before)}
    for label, name in enumerate(now):
        if number.get(name, label) != label:
            return f"class {name!r} is number {number[name]} in the one and {label} in the other"
    return None


def labels_by_name(trained: Sequence[str], other: Sequence[str], where: str) -> list[int] | None:
    """The labels that a trained model knows another set's classes by.

    Args:
        trained: class names of the set that the model was trained on, by label.
        other: those of the other set.
        where: the other set, for the message.

    Returns:
        For each label of the other set the model's; None where they are the same.

    Raises:
        UserError: the model knows no class of that name.
    """
    if list(trained) == list(other):
        return None
    number = {name: label for label, name in enumerate(trained)}
    strange = next((name for name in other if name not in number), None)
    if strange is not None:
        raise UserError(
            f"{where} has the class {strange!r}, which is none of the {len(trained)} classes that "
            f"the model was trained on ({', '.join(trained[:3])}, ...): prepare it with those"
        )
    return [number[name] for name in other]
