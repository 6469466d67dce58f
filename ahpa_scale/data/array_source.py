# SPDX-License-Identifier: Apache-2.0
"""Pictures in memory, as a source for `prepare` and `train_vae`.

Shapes: N pictures, H W their sides (equal), C feature channels, g the token grid's side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ahpa_scale.data.settings import STORED_OPTIONS, PrepareSettings
from ahpa_scale.data.sources import Picture
from ahpa_scale.errors import UserError


class ArraySource:
    """Arrays of pictures, labels and, optionally, features of another encoder.

    Args:
        images_NHWC: uint8 [N, H, W, 3], H = W; a memory map works too.
        labels_N: integers, indices into `classes`.
        classes: class names.
        external_NCgg: float features [N, C, g, g] of another encoder.
        description: where the pictures came from, as text for the user.

    Raises:
        UserError: an array has a wrong shape, or a label has no class.
    """

    def __init__(
        self,
        images_NHWC: NDArray[np.uint8],
        labels_N: NDArray[np.integer],
        classes: Sequence[str],
        *,
        external_NCgg: NDArray[np.floating] | None = None,
        description: str = "arrays",
    ) -> None:
        count, *picture = images_NHWC.shape
        if images_NHWC.dtype != np.uint8 or len(picture) != 3 or picture[2] != 3:
            raise UserError(
                "pictures must be uint8 [N, S, S, 3], not "
                f"{images_NHWC.dtype} {list(images_NHWC.shape)}"
            )
        if picture[0] != picture[1]:
            raise UserError(f"pictures must be square, not {picture[0]}x{picture[1]}")
        if labels_N.shape != (count,) or not 0 <= labels_N.min() <= labels_N.max() < len(classes):
            raise UserError(
                f"{count} pictures of {len(classes)} classes need {count} labels from 0 to "
                f"{len(classes) - 1}"
            )
        if external_NCgg is not None and (len(external_NCgg) != count or external_NCgg.ndim != 4):
            raise UserError(
                f"{count} pictures need features [{count}, C, g, g], not "
                f"{list(external_NCgg.shape)}"
            )
        self.classes, self.description = tuple(classes), description
        self.external_channels = None if external_NCgg is None else external_NCgg.shape[1]
        self._images_NHWC, self._labels_N = images_NHWC, labels_N
        self._external_NCgg = external_NCgg

    def __len__(self) -> int:
        return len(self._images_NHWC)

    @property
    def size(self) -> int:
        """Side of the pictures, in pixels."""
        return int(self._images_NHWC.shape[1])

    @property
    def grid(self) -> int | None:
        """Side of the features' token grid; None without features."""
        return None if self._external_NCgg is None else int(self._external_NCgg.shape[2])

    def on_grid(self, grid: int) -> ArraySource:
        """Returns itself if its features have this token grid, or it has no features.

        Raises:
            UserError: the features have another grid.
        """
        if self.grid not in (None, grid):
            raise UserError(f"the features have a grid of {self.grid}, and {grid} is wanted")
        return self

    def settings(self, out: str, options: dict[str, Any]) -> PrepareSettings:
        """The settings of a preparation of these pictures.

        Raises:
            UserError: an option is not for arrays, or the size is not that of the pictures.
        """
        for name in ("limit", "features", *STORED_OPTIONS):
            if options.get(name) is not None:
                raise UserError(f"{name} is for stored pictures, and these are arrays")
        if options.get("size", self.size) != self.size:
            raise UserError(f"the pictures have {self.size} pixels a side, not {options['size']}")
        return PrepareSettings(source=self.description, out=out, **{**options, "size": self.size})

    def read(self, position: int) -> Picture:
        """The picture at this position."""
        external_Cgg = None
        if self._external_NCgg is not None:
            external_Cgg = np.ascontiguousarray(self._external_NCgg[position], dtype=np.float32)
        image_HWC = np.ascontiguousarray(self._images_NHWC[position])
        return Picture(str(position), image_HWC, int(self._labels_N[position]), external_Cgg)
