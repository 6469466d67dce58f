# SPDX-License-Identifier: Apache-2.0
"""A folder of picture files.

Shapes: B batch, S the picture's side.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from copy import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ahpa_scale import storage
from ahpa_scale.data.pictures.decode import UnreadablePictureError, open_image, read_square
from ahpa_scale.data.pictures.listing import KINDS, Listing
from ahpa_scale.data.pictures.rejects import Rejects
from ahpa_scale.data.settings import REJECTS
from ahpa_scale.errors import UserError
from ahpa_scale.evaluation.picture_sets.base import Statistics, digest_of
from ahpa_scale.progress import progress_bar


class Folder:
    """Pictures of a folder and its sub-folders, cropped as `prepare` crops them.

    Args:
        root: local folder.
        size: side of the cropped pictures; None: the first picture's shorter side.

    Raises:
        UserError: there are fewer than two pictures, or a folder cannot be listed.
    """

    statistics: Statistics | None = None

    def __init__(self, root: str, size: int | None = None) -> None:
        self.place, self._root = root, storage.local_path(root)
        listing = Listing(self._root, depth=0)
        (self._names,) = listing.names
        self.num_pictures = len(self._names)
        if self.num_pictures < 2:
            raise UserError(f"{root} holds {self.num_pictures} pictures ({KINDS}); give a folder")
        self.side = size or min(open_image(self._root / self._names[0]).size)
        self._sizes = [f"{name} {listing.size_of(name)}" for name in self._names]
        self.rejects = Rejects(self.num_pictures, REJECTS)

    def cropped(self, side: int) -> Folder:
        """The same pictures in another size."""
        other = copy(self)
        other.side = side
        return other

    @property
    def digest(self) -> str:
        """Digest of the side, and of names and sizes of the files."""
        return digest_of(os.fsencode("\n".join([f"{self.side}", *self._sizes])))

    def batches(self, batch_size: int, shown: bool) -> Iterator[Tensor]:
        """The pictures in order, uint8 [B, 3, S, S]; unreadable ones are left out.

        Raises:
            UserError: more pictures are unreadable than allowed.
        """
        total, self.rejects = self.num_pictures, Rejects(self.num_pictures, REJECTS)
        with progress_bar(total=total, unit="picture", desc=self.place, shown=shown) as bar:
            for first in range(0, total, batch_size):
                names = self._names[first : first + batch_size]
                images = [*self._readable(names)]
                if images:
                    yield torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
                bar.update(len(names))

    def _readable(self, names: Sequence[str]) -> Iterator[NDArray[np.uint8]]:
        assert self.side is not None
        for name in names:
            try:
                yield read_square(self._root, name, self.side)
            except UnreadablePictureError as error:
                self.rejects.add(error)
