# SPDX-License-Identifier: Apache-2.0
"""Encodes batches of pictures as MDS samples, and gathers statistics over the whole pass.

Shapes: B batch, H W picture sides, C channels, g the token grid's side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ahpa_scale.data import codec
from ahpa_scale.data.card import DatasetCard
from ahpa_scale.data.settings import PrepareSettings
from ahpa_scale.data.sources import Picture
from ahpa_scale.data.statistics import ChannelStatistics, PriorStatistics
from ahpa_scale.level_names import EXTERNAL, LATENT, PRIOR_PREFIX
from ahpa_scale.method.level_codec import LevelCodec
from ahpa_scale.models.level_targets import encode_levels
from ahpa_scale.models.vae import FrozenVAE
from ahpa_scale.models.vae_config import LatentScaling


class BatchEncoder:
    """Encodes batches in order and gathers their statistics.

    Args:
        settings: settings of the preparation.
        card: the card, without the values that are known only after the pass.
        vae: the frozen autoencoder, on the settings' device.
        codec: reduces the encoder's levels; None for pooled ones.
    """

    def __init__(
        self,
        settings: PrepareSettings,
        card: DatasetCard,
        vae: FrozenVAE,
        codec: LevelCodec | None = None,
    ) -> None:
        self._card = card
        self._codec = None if codec is None else codec.to(settings.device)
        self._vae = vae
        self._device = settings.device
        self._channels = ChannelStatistics() if settings.scaling == "channel" else None
        self._priors = PriorStatistics(card.grid)

    def samples(self, batch: list[Picture]) -> Iterator[dict[str, Any]]:
        """The MDS samples of a batch.

        Raises:
            UserError: the stored type cannot hold a value.
        """
        card = self._card
        stored: dict[str, Sequence[Any] | NDArray[Any]] = {"label": [p.label for p in batch]}
        if card.kind == "images":
            stored["image"] = [Image.fromarray(picture.image_HWC) for picture in batch]
        if card.kind == "latents" or self._channels is not None:
            stored.update(self._encoded(batch))
        if card.external_channels is not None:
            external_BCgg = torch.from_numpy(np.stack([p.external_Cgg for p in batch]))  # type: ignore[misc]
            stored.update(self._prior(EXTERNAL, external_BCgg))
        for row in range(len(batch)):
            yield {name: values[row] for name, values in stored.items()}

    def state(self) -> dict[str, Tensor]:
        """The statistics gathered so far, for :meth:`merge_state`."""
        state = {f"priors/{name}": value for name, value in self._priors.state().items()}
        if self._channels is not None:
            state |= {f"channels/{k}": torch.as_tensor(v) for k, v in vars(self._channels).items()}
        return state

    def merge_state(self, state: Mapping[str, Tensor]) -> None:
        """Add the statistics of another encoder of the same card.

        Raises:
            UserError: the state does not fit this card.
        """

        def part(name: str) -> dict[str, Tensor]:
            prefixed = {k: v for k, v in state.items() if k.startswith(f"{name}/")}
            return {key.removeprefix(f"{name}/"): value for key, value in prefixed.items()}

        self._priors.merge(
            PriorStatistics.from_state(self._card.grid, part("priors"), self._levels())
        )
        if self._channels is not None:
            self._channels.merge(ChannelStatistics.from_state(part("channels")))

    def _levels(self) -> tuple[str, ...]:
        """Names of the levels whose statistics are gathered."""
        card = self._card
        return (LATENT, *card.prior_columns) if card.kind == "latents" else ()

    def scaling(self) -> LatentScaling:
        """The scaling for the latents seen so far."""
        return self._card.scaling if self._channels is None else self._channels.scaling()

    def prior_statistics(self) -> dict[str, Tensor]:
        """Mean and covariance of every level, see :class:`PriorStatistics`; empty for 'images'."""
        return self._priors.tensors(self.scaling()) if self._card.kind == "latents" else {}

    def _encoded(self, batch: list[Picture]) -> dict[str, NDArray[Any]]:
        card = self._card
        images_BHWC = torch.from_numpy(np.stack([picture.image_HWC for picture in batch]))
        images_BCHW = images_BHWC.permute(0, 3, 1, 2).to(self._device)
        levels = card.level_names if card.kind == "latents" else ()
        encoded = encode_levels(self._vae, images_BCHW, levels, card.grid, self._codec)
        if self._channels is not None:
            self._channels.update(encoded.mean_BCHW, encoded.std_BCHW)
        if card.kind != "latents":
            return {}
        stored = {"moments": codec.encode_moments(encoded.mean_BCHW, encoded.std_BCHW)}
        self._priors.update_latent(encoded.mean_BCHW)
        for name, map_BCgg in encoded.priors.items():
            stored.update(self._prior(name, map_BCgg))
        return stored

    def _prior(self, name: str, map_BCgg: Tensor) -> dict[str, NDArray[Any]]:
        if self._codec is not None and name != EXTERNAL:
            column = codec.encode_values(map_BCgg, name, self._codec)
            map_BCgg = self._codec.rounded(name, map_BCgg)
        else:
            dtype = codec.prior_dtype(self._card, name)
            column = codec.encode_prior(map_BCgg, name, dtype)
        if self._card.kind == "latents":
            self._priors.update(name, map_BCgg)
        return {PRIOR_PREFIX + name: column}
