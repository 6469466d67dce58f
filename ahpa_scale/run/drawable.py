# SPDX-License-Identifier: Apache-2.0
"""Opens a model that pictures can be drawn from, whatever its weights came from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ahpa_scale.checkpoint.weights import Kind
from ahpa_scale.errors import UserError
from ahpa_scale.interchange.official import Told
from ahpa_scale.interchange.stored import StoredModel
from ahpa_scale.models.conventions import as_velocity
from ahpa_scale.models.description import ModelDescription
from ahpa_scale.models.dit import DiT
from ahpa_scale.run.trained import take_weights
from ahpa_scale.run.weights import as_float32, open_weights


@dataclass(frozen=True)
class Drawable:
    """A model with its weights, ready for a sampler.

    Attributes:
        description: what the model is.
        backbone: called as ``velocity(x_BCHW, t_B, condition_B)`` in this package's time, t = 0 at
            the data; has the attributes of `models.backbone.Backbone` that samplers need. On the
            CPU, in float32, in evaluation mode, without gradients.
        place: where the weights came from.
        remarks: what was left out or assumed when they were read, one line each.
    """

    description: ModelDescription
    backbone: nn.Module
    place: str
    remarks: tuple[str, ...] = ()


def open_model(place: str, kind: Kind | None = None, told: Told | None = None) -> Drawable:
    """Opens a model to draw from. Every rank must call it.

    Args:
        place: as for `open_weights`.
        kind: 'ema' or 'model'; None takes the averages where there are any.
        told: as for `open_weights`.

    Raises:
        UserError: there is nothing, the weights are damaged or of another model than they tell, or
            nothing tells what model it is.
        UnreachableError: a store does not answer.
    """
    stored = open_weights(place, kind, told)
    network = network_of(stored).requires_grad_(False).eval()
    backbone = as_velocity(network, stored.description.convention)
    return Drawable(stored.description, backbone, stored.place, stored.remarks)


def network_of(stored: StoredModel) -> DiT:
    """The network itself with its weights, in float32 on the CPU, in its own convention.

    Raises:
        UserError: the weights do not fit the description.
    """
    told = stored.description
    last = f"blocks.{told.depth - 1}.attn.qkv.weight"
    if last not in stored.weights:  # a thousand blocks would take long to build
        raise UserError(f"{stored.place} lacks {last!r}: it belongs to another configuration")
    with torch.device("meta"):  # neither time nor memory for weights that are replaced at once
        network = DiT(
            told.geometry(),
            in_channels=told.in_channels,
            num_classes=told.num_classes,
            qk_norm=told.qk_norm,
            learn_sigma=told.learn_sigma,
            class_dropout_prob=0.1 if told.null_class else 0.0,
        )
    take_weights(network, as_float32(stored.weights), stored.place, assign=True)
    return network
