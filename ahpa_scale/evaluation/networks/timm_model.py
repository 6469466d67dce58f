# SPDX-License-Identifier: Apache-2.0
"""Any model of the library timm, such as DINOv2's and CLIP's image encoders.

Shapes: B batch, F features, S the picture's side.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ahpa_scale import storage
from ahpa_scale.errors import UserError
from ahpa_scale.evaluation.networks.base import Features
from ahpa_scale.evaluation.networks.resize import resized
from ahpa_scale.evaluation.networks.weights_file import read_weights
from ahpa_scale.unreachable import UnreachableError, is_unreachable

_ON_THE_HUB = "model.safetensors"


class TimmModel:
    """A timm model without its head: what it pools is the feature.

    Args:
        name: timm's name with its tag, such as ``vit_large_patch14_dinov2.lvd142m``.
        side: side of its input, for models that accept several; None: the model's own.
        weights: ``.safetensors`` in timm's names; None fetches the hub's, into its cache.
        device: where it runs.

    Raises:
        UserError: timm has no such model, or the weights are not the model's.
        OSError: the weights can't be fetched.
    """

    def __init__(
        self, name: str, side: int | None, weights: str | None, device: torch.device
    ) -> None:
        import timm

        _check_name(name)
        path = _fetched(name) if weights is None else storage.local_path(weights)
        state, digest = read_weights(path, name, "", "give .safetensors")
        options = {} if side is None else {"img_size": side}
        try:
            # With timm's own head, so that every name in the file must fit.
            self._network: Any = timm.create_model(
                name, pretrained=True, pretrained_cfg_overlay={"state_dict": state}, **options
            )
        except (RuntimeError, KeyError, TypeError, ValueError, AssertionError) as error:
            reason = " ".join(str(error).split("\n")[:2]) or type(error).__name__
            raise UserError(f"{path} does not fit timm's {name}: {reason.strip()}") from None
        self._network.reset_classifier(0)
        self._network.to(device).eval().requires_grad_(False)
        self._device = device
        self._take(timm.data.resolve_model_data_config(self._network), name, side, digest)

    def _take(self, chosen: Mapping[str, Any], name: str, side: int | None, digest: str) -> None:
        height, width = chosen["input_size"][1:] if side is None else (side, side)
        self._size = (int(height), int(width))
        self._mode = "bilinear" if chosen["interpolation"] == "bilinear" else "bicubic"
        self._mean, self._std = (
            torch.tensor(chosen[part], device=self._device)[:, None, None] * 255
            for part in ("mean", "std")
        )
        self.facts: Mapping[str, Any] = {
            "name": name if side is None else f"{name}@{side}",
            "weights": digest,
            "preprocessing": f"{self._mode} to {self._size[0]}, timm's mean and deviation",
        }

    @torch.no_grad()
    def __call__(self, images_B3SS: Tensor) -> Features:
        """Features of pictures, uint8 [B, 3, S, S], float32 [B, F]."""
        x_B3SS = resized(images_B3SS.to(self._device), self._size, self._mode)
        with torch.autocast(x_B3SS.device.type, enabled=False):
            return Features(self._network((x_B3SS - self._mean) / self._std))


def _check_name(name: str) -> None:
    import timm

    try:
        known = timm.is_model(name) and timm.get_pretrained_cfg(name) is not None
    except RuntimeError:  # an unknown tag
        known = False
    if not known:
        close = get_close_matches(name, timm.list_models(pretrained=True), 1)
        hint = f"did you mean {close[0]!r}?" if close else "see timm.list_models(pretrained=True)"
        raise UserError(f"timm has no model {name!r}; {hint}")


def _fetched(name: str) -> Path:
    """The hub's safetensors in its cache. timm itself would also take a pickle."""
    import timm
    from huggingface_hub import hf_hub_download

    place = timm.get_pretrained_cfg_value(name, "hf_hub_id")
    if place is None:
        raise UserError(f"timm knows no weights of {name} on the hub: give {name}=FILE.safetensors")
    try:
        return Path(hf_hub_download(place, _ON_THE_HUB))
    except OSError as error:
        kind = UnreachableError if is_unreachable(error) else UserError
        raise kind(
            f"cannot fetch {_ON_THE_HUB} of {place} ({error}): give {name}=FILE.safetensors"
        ) from None
