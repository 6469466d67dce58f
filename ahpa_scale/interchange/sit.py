# SPDX-License-Identifier: Apache-2.0
"""Our weights as the official SiT code reads them, and back.

SiT's time is s = 1 - t, and v_SiT(x, s) = -v(x, 1 - s) (see `models.conventions`). Both can be put
into the weights. Negating the last layer negates the velocity. The time embedding begins with
cos(w s) and sin(w s) for each frequency w, and

    cos(w (1 - s)) = cos(w) cos(w s) + sin(w) sin(w s)
    sin(w (1 - s)) = sin(w) cos(w s) - cos(w) sin(w s),

so a reflection of each pair of columns of the layer behind it turns the time around. It is exact up
to rounding. A file therefore also holds the layer as it was, so that it comes back to the bit.

Shape legend: D width, F features of the time (cosines, then sines), C channels, P patch side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ahpa_scale.errors import UserError
from ahpa_scale.interchange.stored import StoredModel
from ahpa_scale.interchange.torch_files import StoredTensor
from ahpa_scale.models.description import DESCRIPTION, Convention, ModelDescription, WeightsKind
from ahpa_scale.models.dit_layers import time_frequencies

#: Key of a file that this package wrote, beside the official code's ``ema``.
OURS = "ahpa_scale"
_TIME = "t_embedder.mlp.0.weight"
_OUTPUTS = ("final_layer.linear.weight", "final_layer.linear.bias")


def with_time_reversed(stored: StoredModel) -> StoredModel:
    """A model of SiT's convention in ours, or of ours in SiT's; the weights change.

    Raises:
        UserError: the model has another convention, or lacks the weights.
    """
    told = stored.description
    turned: dict[Convention, Convention] = {"velocity": "sit", "sit": "velocity"}
    if told.convention not in turned:
        raise UserError(
            f"{stored.place} predicts noise at 1,000 steps, as the official DiT does: that cannot "
            "be written as a velocity by other weights"
        )
    _check_names(stored.weights, stored.place)
    weights = dict(stored.weights)
    weights[_TIME] = _reflected(weights[_TIME])
    for name in _OUTPUTS:
        weights[name] = -weights[name]
    described = replace(told, convention=turned[told.convention])
    return replace(stored, description=described, weights=weights)


def without_sigma(stored: StoredModel) -> StoredModel:
    """The model without the outputs that predict a variance, which nothing here uses."""
    told = stored.description
    if not told.learn_sigma:
        return stored
    _check_names(stored.weights, stored.place)
    weights = dict(stored.weights)
    patch, channels = told.patch_size, told.in_channels
    for name in _OUTPUTS:
        value = weights[name]
        split = value.unflatten(0, (patch, patch, 2 * channels))
        weights[name] = split[:, :, :channels].flatten(0, 2).contiguous()
    return replace(stored, description=replace(told, learn_sigma=False), weights=weights)


def sit_content(stored: StoredModel) -> dict[str, Any]:
    """What to give to `torch.save` so that the official SiT code reads it (``find_model`` of its
    ``download.py``), and `read_ours` too.

    Raises:
        UserError: SiT's code has no such model; the message says why.
    """
    told = stored.description
    if told.qk_norm or not told.null_class:
        lack = "a norm of queries and keys" if told.qk_norm else "no null class"
        raise UserError(f"{stored.place} has {lack}: SiT's code has no such model")
    turned = stored if told.convention == "sit" else with_time_reversed(stored)
    facts: dict[str, Any] = {DESCRIPTION: told.to_json()}
    if told.convention != "sit":
        facts[_TIME] = stored.weights[_TIME]
    return {"ema": dict(turned.weights), OURS: facts}


def read_ours(
    facts: Any, state: Mapping[str, StoredTensor], where: str, kind: WeightsKind | None = None
) -> StoredModel:
    """Reads what `sit_content` made, to the bit. If someone has trained the weights further since,
    the time is turned by arithmetic.

    Args:
        facts: the file's own entry of ours.
        state: the weights.
        where: the file's name in messages.
        kind: 'ema' or 'model' refuses a file of the other kind.

    Raises:
        UserError: the entry is damaged, or the file holds another kind.
    """
    text = facts.get(DESCRIPTION) if isinstance(facts, dict) else None
    if not isinstance(text, str):
        raise UserError(f"{where} has a damaged entry {OURS!r}")
    told = ModelDescription.from_json(text, where)
    told.check_kind(kind, where)
    weights = {name: tensor.load().clone() for name, tensor in state.items()}
    if told.convention == "sit":
        return StoredModel(told, weights, where)
    turned = StoredModel(replace(told, convention="sit"), weights, where)
    back = with_time_reversed(turned)
    before = facts.get(_TIME)
    if isinstance(before, StoredTensor):
        original = before.load().clone()
        if original.shape == weights[_TIME].shape and torch.equal(
            _reflected(original), weights[_TIME]
        ):
            return replace(back, weights={**back.weights, _TIME: original})
    return replace(back, remarks=("its weights have changed since this package wrote it",))


def _check_names(weights: Mapping[str, Tensor], where: str) -> None:
    for name in (_TIME, *_OUTPUTS):
        if name not in weights:
            raise UserError(f"{where} lacks {name!r}: it belongs to another configuration")
    shape, features = weights[_TIME].shape, 2 * len(time_frequencies(weights[_TIME].device))
    if len(shape) != 2 or shape[1] != features:
        raise UserError(f"{where} has a {_TIME!r} of {tuple(shape)}, not of {features} features")


def _reflected(weight_DF: Tensor) -> Tensor:
    """The layer behind the time's features, for 1 - t instead of t; twice is once around."""
    frequency = time_frequencies(weight_DF.device).double()
    cosine, sine = frequency.cos(), frequency.sin()
    of_cosines, of_sines = weight_DF.double().chunk(2, dim=1)
    turned = [of_cosines * cosine + of_sines * sine, of_cosines * sine - of_sines * cosine]
    return torch.cat(turned, dim=1).to(weight_DF.dtype)
