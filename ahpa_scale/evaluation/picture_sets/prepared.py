# SPDX-License-Identifier: Apache-2.0
"""A data set of pictures in MDS shards, as `ahpa-scale prepare --kind images` writes it.

Shapes: B batch, S the picture's side.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ahpa_scale import storage
from ahpa_scale.data.card import read_card
from ahpa_scale.data.pictures.rejects import Rejects
from ahpa_scale.data.settings import REJECTS
from ahpa_scale.data.stream import build_loader
from ahpa_scale.errors import UserError
from ahpa_scale.evaluation.picture_sets.base import Statistics
from ahpa_scale.progress import progress_bar


class Prepared:
    """Pictures of a prepared data set.

    Args:
        place: its folder or URL.
        room: local folder for copies of its shards.

    Raises:
        UserError: there is no whole data set, or it holds latents.
    """

    statistics: Statistics | None = None

    def __init__(self, place: str, room: str) -> None:
        self.place, self._room = place, room
        card = read_card(place)
        if card.kind != "images":
            raise UserError(f"{place} holds {card.kind}, no pictures: prepare with --kind images")
        self.digest, self.num_pictures, self.side = (
            card.fingerprint,
            card.num_samples,
            card.image_size,
        )
        self.rejects = Rejects(card.num_samples, REJECTS)

    def batches(self, batch_size: int, shown: bool) -> Iterator[Tensor]:
        """The pictures in order, uint8 [B, 3, S, S]."""
        loader = build_loader(
            self.place,
            local=self._room if storage.is_remote(self.place) else None,
            batch_size=min(batch_size, self.num_pictures),
            levels=(),
            shuffle=False,
            drop_last=False,
        )
        total = self.num_pictures
        with progress_bar(total=total, unit="picture", desc=self.place, shown=shown) as bar:
            for batch in loader:
                yield batch["image"]
                bar.update(len(batch["image"]))
