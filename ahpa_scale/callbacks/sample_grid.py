# SPDX-License-Identifier: Apache-2.0
"""Pictures from the averaged weights while training: `samples/step-<batch>.png`.

Legend: B batch, C channels, H W.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from composer.core import Callback, Event, State
from composer.core.precision import get_precision_context
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor

from ahpa_scale.algorithms.timing import Every
from ahpa_scale.callbacks.averages import AskedToLeaveError, averages_lent
from ahpa_scale.callbacks.common import writes_files
from ahpa_scale.errors import UserError
from ahpa_scale.log_files import going_on_without
from ahpa_scale.models.backbone import Backbone
from ahpa_scale.models.flow import Path as FlowPath
from ahpa_scale.models.vae_config import LatentScaling
from ahpa_scale.preemption import Requests
from ahpa_scale.run_files import SAMPLES_FOLDER, sample_name
from ahpa_scale.sampling.grid import PER_CLASS, class_rows, image_grid, save_image
from ahpa_scale.sampling.sampler import sample
from ahpa_scale.sampling.settings import SamplerSettings


class Decoder(Protocol):
    """The part of `FrozenVAE` that is needed here."""

    def decode(self, z_BCHW: Tensor, /) -> Tensor:
        """Unscaled latents to uint8 pictures [B, 3, S, S]."""
        ...


class SampleGrid(Callback):
    """A row per class, drawn with the EMA's weights if there is an EMA, at an interval and the end.

    The ranks share the work in equal numbers of forward passes: a sharded model needs all ranks at
    every pass, and replicas are faster this way. Noise is keyed by seed and sample, so the picture
    is the same for any number of ranks, and no random state is touched.

    Args:
        output_dir: local folder; the pictures go to ``samples`` in it.
        interval: time string between grids.
        decoder: the VAE, on the device of the model.
        scaling: how the model's latents were scaled.
        path: the interpolant of training.
        class_names: of all classes.
        classes: the classes to draw; None draws the first 8.
        num_per_class: pictures per row.
        settings: of the sampler. Its steps must be given: ranks make equal numbers of passes.
        batch_size: pictures per forward pass and rank.
        requests: no grid is started or finished once the run is asked to leave: the checkpoint
            needs the time.

    Raises:
        UserError: a class that does not exist, a number out of range, or a sampler that chooses
            its steps by itself.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        interval: str,
        *,
        decoder: Decoder,
        scaling: LatentScaling,
        path: FlowPath,
        class_names: Sequence[str],
        classes: Sequence[int] | None = None,
        num_per_class: int = PER_CLASS,
        settings: SamplerSettings | None = None,
        batch_size: int = 32,
        requests: Requests | None = None,
    ) -> None:
        if num_per_class < 1 or batch_size < 1:
            raise UserError("num_per_class and batch_size of sample grids must be at least 1")
        self.settings = settings or SamplerSettings()
        if self.settings.adaptive:
            raise UserError(f"sample grids can't use {self.settings.method!r}: name its steps")
        known = len(class_names)
        self.classes = list(range(min(8, known))) if classes is None else list(classes)
        wrong = [label for label in self.classes if not 0 <= label < known]
        if wrong or not self.classes:
            raise UserError(
                f"sample grids ask for classes {wrong or '[]'}: choose from 0 to {known - 1}"
            )
        self.folder = Path(output_dir) / SAMPLES_FOLDER
        self.due = Every(interval)
        self.decoder, self.scaling, self.path = decoder, scaling, path
        self.class_names = list(class_names)
        self.num_per_class, self.batch_size = num_per_class, batch_size
        self.requests = requests or Requests()
        self._last = -1

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        """Draw when it is time, once per batch number."""
        batch = state.timestamp.batch.value
        if not (event == Event.FIT_END or self.due(event, state)) or batch == self._last:
            return
        self._last = batch
        try:
            images_B3SS = self.draw(state)
        except AskedToLeaveError:
            return
        if writes_files():
            labels = [self.class_names[label] for label in self.classes]
            picture = image_grid(images_B3SS, self.num_per_class, labels)
            with going_on_without(self.folder):
                save_image(picture, self.folder / sample_name(batch))
            logger.log_images(np.asarray(picture), name="samples", channels_last=True, step=batch)

    @torch.no_grad()
    def draw(self, state: State) -> Tensor:
        """All pictures of the grid, uint8 [B, 3, S, S] row by row; every rank must call it.

        Raises:
            AskedToLeaveError: any rank is asked to leave meanwhile, or was before.
        """
        precision = get_precision_context(state.precision, state.precision_config)
        with averages_lent(state, self.requests) as backbone, precision:
            return self._share(backbone)

    def _share(self, backbone: Backbone) -> Tensor:
        """Draws this rank's part of the pictures and returns all ranks' in order."""
        device = next(backbone.parameters()).device
        labels_B, index_B = class_rows(self.classes, self.num_per_class, device)
        ranks, rank, total = dist.get_world_size(), dist.get_global_rank(), len(labels_B)
        # Ranks beyond the last picture repeat it, so all make the same number of passes.
        mine = torch.arange(rank, total + -total % ranks, ranks, device=device).clamp(max=total - 1)
        parts = [
            self._pictures(backbone, labels_B[chunk], index_B[chunk])
            for chunk in mine.split(self.batch_size)
        ]
        gathered = dist.all_gather(torch.cat(parts).contiguous())
        return torch.stack(list(gathered), dim=1).flatten(0, 1)[:total]

    def _pictures(self, backbone: Backbone, labels_B: Tensor, index_B: Tensor) -> Tensor:
        shape = (backbone.in_channels, backbone.input_size, backbone.input_size)
        z_BCHW = sample(
            backbone,
            labels_B=labels_B,
            index_B=index_B,
            shape=shape,
            path=self.path,
            settings=self.settings,
        )
        return self.decoder.decode(self.scaling.denormalise(z_BCHW))
