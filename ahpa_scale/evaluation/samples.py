# SPDX-License-Identifier: Apache-2.0
"""Many pictures from a model with fixed noise: picture n of two models starts from the same noise.

Shapes: N pictures, B batch, C channels, H W latent sides, S the picture's side.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from ahpa_scale.errors import UserError
from ahpa_scale.evaluation.heldout import evaluating, known_labels
from ahpa_scale.models.backbone import Backbone
from ahpa_scale.models.flow import Path
from ahpa_scale.models.vae_config import LatentScaling
from ahpa_scale.precision import inference_autocast
from ahpa_scale.sampling.guidance import Velocity
from ahpa_scale.sampling.sampler import sample
from ahpa_scale.sampling.settings import SamplerSettings


class Decoder(Protocol):
    """The part of `FrozenVAE` that is needed here."""

    def decode(self, z_BCHW: Tensor, /) -> Tensor:
        """Unscaled latents to uint8 pictures [B, 3, S, S]."""
        ...


class ExactDecoder:
    """A decoder in float32, whatever the model runs in: its rounding would count as model error."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def decode(self, z_BCHW: Tensor) -> Tensor:
        """Unscaled latents to uint8 pictures [B, 3, S, S]."""
        with torch.autocast(z_BCHW.device.type, enabled=False):
            return self._decoder.decode(z_BCHW.float())


def draw_samples(
    backbone: Backbone,
    decoder: Decoder,
    scaling: LatentScaling,
    path: Path,
    labels_N: Tensor,
    index_N: Tensor | None = None,
    *,
    settings: SamplerSettings,
    guide: Velocity | None = None,
    batch_size: int = 250,
) -> Tensor:
    """Draw one picture per label, as `sample_batches` does.

    Returns:
        uint8 [N, 3, S, S] on the CPU.

    Raises:
        UserError: as `sample_batches`.
    """
    batches = sample_batches(
        backbone,
        decoder,
        scaling,
        path,
        labels_N,
        index_N,
        settings=settings,
        guide=guide,
        batch_size=batch_size,
    )
    return torch.cat([images_B3SS.cpu() for images_B3SS in batches])


def sample_batches(
    backbone: Backbone,
    decoder: Decoder,
    scaling: LatentScaling,
    path: Path,
    labels_N: Tensor,
    index_N: Tensor | None = None,
    *,
    settings: SamplerSettings,
    guide: Velocity | None = None,
    batch_size: int,
) -> Iterator[Tensor]:
    """Draw one picture per label; a model of one class ignores the labels.

    On a CPU model and decoder run in its fastest precision, see `inference_autocast`.

    Args:
        backbone: the velocity model, with the weights to evaluate.
        decoder: the VAE, on the model's device.
        scaling: how the model's latents were scaled.
        path: the interpolant of training.
        labels_N: int64 [N].
        index_N: int64 [N]; picture n starts from the noise of (seed, index n). None: 0 to N - 1.
        settings: of the sampler.
        guide: the model of ``settings.guide``, on the same device.
        batch_size: pictures per forward pass; it does not change the noise.

    Yields:
        uint8 [B, 3, S, S] on the model's device.

    Raises:
        UserError: no label, one outside the model's classes, or a number out of range.
    """
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {batch_size}")
    if labels_N.ndim != 1 or not len(labels_N):
        raise UserError(f"labels must be a list of at least one, got {list(labels_N.shape)}")
    device = next(backbone.parameters()).device
    labels_N = known_labels(backbone, labels_N.to(device))
    if int(labels_N.min()) < 0 or int(labels_N.max()) >= backbone.num_classes:
        raise UserError(f"labels must be within 0 to {backbone.num_classes - 1}")
    if index_N is None:
        index_N = torch.arange(len(labels_N), device=device)
    shape = (backbone.in_channels, backbone.input_size, backbone.input_size)
    for labels_B, index_B in zip(
        labels_N.split(batch_size), index_N.split(batch_size), strict=True
    ):
        # Entered again for each batch, because the caller does its own work between two batches.
        with torch.no_grad(), evaluating(backbone), inference_autocast(device):
            z_BCHW = sample(
                backbone,
                labels_B=labels_B,
                index_B=index_B,
                shape=shape,
                path=path,
                settings=settings,
                guide=guide,
            )
            images_B3SS = decoder.decode(scaling.denormalise(z_BCHW))
        yield images_B3SS
