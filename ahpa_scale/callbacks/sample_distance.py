# SPDX-License-Identifier: Apache-2.0
"""FID, or another Frechet distance, of the averaged weights while training, by the code of
`ahpa-scale evaluate`.

Shapes: N generated pictures of all ranks, B batch, S the picture's side.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from composer.core import State
from composer.utils import dist
from torch import Tensor

from ahpa_scale.callbacks.averages import averages_lent
from ahpa_scale.callbacks.common import unwrap
from ahpa_scale.callbacks.measuring import Measuring
from ahpa_scale.evaluation.feature_sets import Collector
from ahpa_scale.evaluation.measures import Distances
from ahpa_scale.evaluation.networks import Network
from ahpa_scale.evaluation.samples import ExactDecoder, sample_batches
from ahpa_scale.models.backbone import Backbone
from ahpa_scale.models.generator import DiffusionGenerator
from ahpa_scale.models.vae import FrozenVAE
from ahpa_scale.precision import evaluation_autocast
from ahpa_scale.sampling.settings import SamplerSettings

#: Begins the names in the logs.
PREFIX = "samples/"


class SampleDistance(Measuring):
    """The values are those of `ahpa-scale evaluate` on the checkpoint of the same batch: the same
    labels, noise and sampler, and the averaged weights where there are any. The ranks share the
    pictures.

    Args:
        interval: time string between measurements.
        facts: what identifies sampler and reference, ready for JSON.
        distances: from the real pictures.
        network: gives the features, on this rank's device.
        decoder: the VAE, on this rank's device.
        samples: pictures of all ranks together, at least one per rank.
        settings: of the sampler. Its steps must be given: ranks make equal numbers of passes.
        batch_size: pictures per forward pass and rank.
        options: of `Measuring`.
    """

    def __init__(
        self,
        interval: str,
        facts: Mapping[str, Any],
        *,
        distances: Distances,
        network: Network,
        decoder: FrozenVAE,
        samples: int,
        settings: SamplerSettings,
        batch_size: int,
        **options: Any,
    ) -> None:
        super().__init__(interval, facts, **options)
        self.distances, self.network = distances, network
        self.decoder, self.settings = ExactDecoder(decoder), settings
        self.samples, self.batch_size = samples, batch_size
        self._device = torch.device("cpu")

    def measure(self, state: State) -> dict[str, float]:
        """The distance of the pooled features, then that of the spatial ones, if there are any."""
        collector = Collector(self.network, keep=False)
        with averages_lent(state, self.requests) as backbone:
            self._device = next(backbone.parameters()).device
            self._draw(cast(DiffusionGenerator, unwrap(state.model)), backbone, collector)
        collector.add_up(self._add_up)
        return {PREFIX + name: value for name, value in self.distances(collector.done()).items()}

    def _draw(
        self, generator: DiffusionGenerator, backbone: Backbone, collector: Collector
    ) -> None:
        """Draws every world size-th picture. A rank that has one less draws its last one twice,
        because all ranks must make the same number of passes.
        """
        device = self._device
        rank, ranks, total = dist.get_global_rank(), dist.get_world_size(), self.samples
        index_N = torch.arange(rank, total + -total % ranks, ranks, device=device)
        counted_N, index_N = index_N < total, index_N.clamp(max=total - 1)
        batches = sample_batches(
            backbone,
            self.decoder,
            generator.scaling,
            generator.path,
            index_N % backbone.num_classes,
            index_N,
            settings=self.settings,
            batch_size=self.batch_size,
        )
        parts = zip(counted_N.split(self.batch_size), index_N.split(self.batch_size), strict=True)
        with evaluation_autocast(device):
            for counted_B, index_B in parts:
                images_B3SS = next(batches)
                if bool(counted_B.any()):
                    with torch.autocast(device.type, enabled=False):
                        collector.add(images_B3SS[counted_B], index_B[counted_B])

    def _add_up(self, tensor: Tensor) -> None:
        there = tensor.to(self._device)  # NCCL takes tensors of GPUs only
        dist.all_reduce(there, reduce_operation="SUM")
        tensor.copy_(there)
