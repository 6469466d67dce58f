# SPDX-License-Identifier: Apache-2.0
"""Some pictures of a source, as a source: a part's share, or a sample."""

from __future__ import annotations

from collections.abc import Sequence

from ahpa_scale.data.sources.base import Picture, Source


class SomeOf:
    """Pictures at some positions of a source.

    Args:
        whole: the source.
        positions: of the pictures, in order.
    """

    def __init__(self, whole: Source, positions: Sequence[int]) -> None:
        self.whole, self.positions = whole, positions
        self.classes, self.description = whole.classes, whole.description
        self.external_channels = whole.external_channels

    def __len__(self) -> int:
        return len(self.positions)

    def read(self, position: int) -> Picture:
        """The picture at this position among them; UnreadablePictureError if it can't be read."""
        return self.whole.read(self.positions[position])
