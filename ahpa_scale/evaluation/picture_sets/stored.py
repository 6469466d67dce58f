# SPDX-License-Identifier: Apache-2.0
"""Pictures of any source that `prepare` reads, besides folders of files: tars, tables, shards.

Shapes: B batch, S the picture's side.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ahpa_scale.data.pictures.decode import shorter_side
from ahpa_scale.data.pictures.rejects import Rejects
from ahpa_scale.data.reading import batches
from ahpa_scale.data.settings import REJECTS
from ahpa_scale.data.sources import SourceOptions, open_source
from ahpa_scale.errors import UserError
from ahpa_scale.evaluation.picture_sets.base import Statistics, digest_of
from ahpa_scale.progress import progress_bar

_THREADS = 4


class Stored:
    """Pictures without their labels, cropped as `prepare` crops them.

    Args:
        place: what `ahpa_scale.data.sources.open_source` opens.
        size: side of the cropped pictures; None: the first picture's shorter side.

    Raises:
        UserError: there are fewer than two pictures, or they can't be opened.
    """

    statistics: Statistics | None = None

    def __init__(self, place: str, size: int | None = None) -> None:
        self.place = place
        first = open_source(place, SourceOptions(size=1, class_depth=0)).collection
        self.side = size or shorter_side(lambda: first.open(0), place)
        self.num_pictures = len(first.labels_N)
        if self.num_pictures < 2:
            raise UserError(f"{place} holds {self.num_pictures} pictures; give two or more")
        self._source = open_source(place, SourceOptions(size=self.side, class_depth=0))
        self.rejects = Rejects(self.num_pictures, REJECTS)

    def cropped(self, side: int) -> Stored:
        """The same pictures in another size."""
        return Stored(self.place, side)

    @property
    def digest(self) -> str:
        """Digest of the side, and of what the source knows of its pictures without reading them."""
        told = [self.side, self._source.digests(_THREADS)]
        return digest_of(json.dumps(told).encode())

    def batches(self, batch_size: int, shown: bool) -> Iterator[Tensor]:
        """The pictures in an order of their own, uint8 [B, 3, S, S]; unreadable ones are left out.

        Raises:
            UserError: more pictures are unreadable than allowed.
        """
        total, self.rejects = self.num_pictures, Rejects(self.num_pictures, REJECTS)
        every = [(0, range(total))]
        with progress_bar(total=total, unit="picture", desc=self.place, shown=shown) as bar:
            for batch in batches(self._source, every, batch_size=batch_size, workers=_THREADS):
                self.rejects.add_all({each.name: each.reason for each in batch.rejects})
                images = [picture.image_HWC for picture in batch.pictures]
                if images:
                    yield torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
                bar.update(len(images) + len(batch.rejects))
