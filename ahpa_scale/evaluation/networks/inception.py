# SPDX-License-Identifier: Apache-2.0
"""The Inception network of FID, by the library torch-fidelity.

The library has the weights, resizing and layers of the original TensorFlow graph, which published
numbers were computed with.

Shapes: B batch, F pooled features, P spatial features, C classes, S the picture's side.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ahpa_scale import storage
from ahpa_scale.errors import UserError
from ahpa_scale.evaluation.networks.base import INCEPTION, Features
from ahpa_scale.evaluation.networks.weights_file import read_weights
from ahpa_scale.unreachable import UnreachableError, is_unreachable

#: Numbers of pooled and of spatial features.
FEATURES, SPATIAL_FEATURES = 2048, 7 * 17 * 17
#: SHA-256 of the weights that the library fetches. They are a pickle: no other bytes are opened.
WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
_EXTRACTOR, _LAYERS = "inception-v3-compat", (str(FEATURES), "logits_unbiased")
#: ADM's evaluator takes this many channels of ``mixed_6/conv`` for sFID (arXiv 2105.05233).
_SPATIAL_CHANNELS = 7


class Inception:
    """The library's Inception network.

    Args:
        weights: the library's own weight file, or safetensors of the weights; None fetches the
            library's file once, into torch's cache.
        device: where it runs.

    Raises:
        UserError: the file holds no such weights.
        OSError: they can't be fetched.
    """

    def __init__(self, weights: str | None, device: torch.device) -> None:
        path = _fetched() if weights is None else storage.local_path(weights)
        advice = "name the library's own file with --inception, or .safetensors"
        state, digest = read_weights(path, "Inception", WEIGHTS_SHA256, advice)
        self.facts: Mapping[str, Any] = {
            "name": INCEPTION,
            "weights": digest,
            "preprocessing": "bilinear to 299 as TensorFlow 1, (x - 128) / 128",
        }
        self._device = device
        self._network = _built(state, path).to(device)
        self._spatial: list[Tensor] = []
        # TensorFlow's mixed_6 is torchvision's Mixed_6d; its conv is the 1x1 branch after ReLU.
        self._network.Mixed_6d.branch1x1.register_forward_hook(self._note)

    @torch.no_grad()
    def __call__(self, images_B3SS: Tensor) -> Features:
        """Features of pictures, uint8 [B, 3, S, S]: pooled, ADM's spatial ones, and logits."""
        pooled_BF, logits_BC = self._network(images_B3SS.to(self._device))
        maps_BCHW = self._spatial.pop()[:, :_SPATIAL_CHANNELS]
        # Channels last, as in TensorFlow, so that published mu_s and sigma_s fit.
        return Features(pooled_BF, maps_BCHW.permute(0, 2, 3, 1).flatten(1), logits_BC)

    def _note(self, module: nn.Module, inputs: Any, output_BCHW: Tensor) -> None:
        del module, inputs
        self._spatial = [output_BCHW]


def _built(state: dict[str, Tensor], path: Path) -> Any:
    from torch_fidelity.utils import create_feature_extractor

    try:
        with tempfile.TemporaryDirectory() as room:
            # The library unpickles its file, so it gets one that we wrote from plain tensors.
            torch.save(state, f"{room}/weights.pth")
            return create_feature_extractor(
                _EXTRACTOR,
                list(_LAYERS),
                cuda=False,
                feature_extractor_weights_path=f"{room}/weights.pth",
                verbose=False,
            )
    except (RuntimeError, AttributeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} holds no weights of Inception: {reason}") from None


def weights_digest(weights: str | None) -> str:
    """Digest of Inception's weights, before they are loaded. The file that the library fetches has
    it in its name.
    """
    import hashlib

    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    if weights is None:
        return str(URL_INCEPTION_V3).rpartition("-")[2].partition(".")[0]
    return hashlib.sha256(storage.local_path(weights).read_bytes()).hexdigest()[:8]


def _fetched() -> Path:
    """The library's weights in torch's cache."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    path = Path(torch.hub.get_dir(), "checkpoints", URL_INCEPTION_V3.rsplit("/", 1)[-1])
    if not path.is_file():
        os.makedirs(path.parent, exist_ok=True)
        digits = weights_digest(None)
        try:
            # This writes a temporary file, checks the digits of its hash, then renames it.
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), digits, progress=False)
        except (OSError, RuntimeError) as error:
            kind = UnreachableError if is_unreachable(error) else UserError
            raise kind(
                f"cannot fetch {URL_INCEPTION_V3} ({error}): name a copy of it with --inception, "
                "or take --features efficientnet-lite0, which is installed"
            ) from None
    return path
