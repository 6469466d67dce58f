# SPDX-License-Identifier: Apache-2.0
"""A model's weights together with what the model is: what every reader of this package returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ahpa_scale.models.description import ModelDescription


@dataclass(frozen=True)
class StoredModel:
    """A model's weights and description.

    Attributes:
        description: what the model is.
        weights: tensors by the backbone's own names, on the CPU, in the dtype of the file.
        place: where they came from.
        remarks: what was left out or assumed on the way, one line each.
    """

    description: ModelDescription
    weights: Mapping[str, Tensor]
    place: str
    remarks: tuple[str, ...] = ()
