# SPDX-License-Identifier: Apache-2.0
"""What a feature network is for the measures.

Shapes: B batch, F pooled features, P spatial features, C classes, S the picture's side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # the configuration needs the names only
    from torch import Tensor

#: Name of the network that FID, sFID, Inception score and KID are defined by.
INCEPTION = "inception"
EFFICIENTNET_LITE = "efficientnet-lite0"


@dataclass(frozen=True)
class Features:
    """What a network says of a batch.

    Attributes:
        pooled_BF: one vector per picture.
        spatial_BP: Inception's spatial features, flattened; None for other networks.
        logits_BC: Inception's logits, without its bias; None for other networks.
    """

    pooled_BF: Tensor
    spatial_BP: Tensor | None = None
    logits_BC: Tensor | None = None


class Network(Protocol):
    """A frozen network of pictures."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """All that its features depend on, ready for JSON: ``name``, ``weights`` (the first digits
        of the file's SHA-256) and ``preprocessing``.
        """
        ...

    def __call__(self, images_B3SS: Tensor) -> Features:
        """Features of pictures, uint8 [B, 3, S, S], on any device; float32 on the network's."""
        ...
