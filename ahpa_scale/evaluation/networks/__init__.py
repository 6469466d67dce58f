# SPDX-License-Identifier: Apache-2.0
"""Feature networks, all behind one door: Inception, EfficientNet-Lite, and any model of timm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ahpa_scale.evaluation.networks.base import (
    EFFICIENTNET_LITE,
    INCEPTION,
    Features,
    Network,
)

if TYPE_CHECKING:
    import torch

__all__ = ["EFFICIENTNET_LITE", "INCEPTION", "Features", "Network", "open_network"]


def open_network(
    name: str, device: torch.device, weights: str | None = None, side: int | None = None
) -> Network:
    """A frozen network.

    Args:
        name: ``inception``, ``efficientnet-lite0``, or a name of timm.
        device: where it runs.
        weights: local file; None: the package's, the library's or the hub's own.
        side: side of the input, for models of timm that accept several.

    Raises:
        UserError: an unknown name, weights that are not the network's, or a missing package.
        UnreachableError: the weights can't be fetched.
    """
    if name == INCEPTION:
        from ahpa_scale.evaluation.networks.inception import Inception

        return Inception(weights, device)
    if name == EFFICIENTNET_LITE:
        from ahpa_scale.evaluation.networks.efficientnet_lite import EfficientNetLite

        return EfficientNetLite(device)
    from ahpa_scale.evaluation.networks.timm_model import TimmModel

    return TimmModel(name, side, weights, device)
