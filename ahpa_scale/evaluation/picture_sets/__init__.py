# SPDX-License-Identifier: Apache-2.0
"""Sets of pictures, all behind one door: folders, `.npz`, prepared data sets, statistics."""

from __future__ import annotations

from collections.abc import Sequence

from ahpa_scale import storage
from ahpa_scale.data.card import CARD_NAME
from ahpa_scale.data.index import INDEX_NAME
from ahpa_scale.errors import UserError
from ahpa_scale.evaluation.feature_sets import FeatureSet
from ahpa_scale.evaluation.networks.base import Network
from ahpa_scale.evaluation.picture_sets.base import PictureSet, features_of
from ahpa_scale.evaluation.picture_sets.folder import Folder
from ahpa_scale.evaluation.picture_sets.npz import NpzFile, write_statistics
from ahpa_scale.evaluation.picture_sets.prepared import Prepared
from ahpa_scale.evaluation.picture_sets.stored import Stored

__all__ = [
    "PictureSet",
    "features_of",
    "in_one_size",
    "open_pictures",
    "statistics_of",
    "write_statistics",
]


def open_pictures(place: str, room: str, size: int | None = None) -> PictureSet:
    """A set of pictures, of statistics, or of both.

    Args:
        place: local folder of picture files; folder or URL of a data set prepared with
            ``--kind images``; path or URL of an ``.npz``; or any other source of `prepare`.
        room: local folder for copies of what a store holds.
        size: side that picture files are cropped to; None: the first picture's shorter side.

    Raises:
        UserError: it is none of these.
        OSError: nothing is there, or the store can't be reached.
    """
    if place.endswith(".npz"):
        return NpzFile(place, room)
    if storage.exists(storage.join(place, CARD_NAME)):
        return Prepared(place, room)
    local = None if storage.is_remote(place) else storage.local_path(place)
    files = local is not None and local.is_dir() and not (local / INDEX_NAME).exists()
    return Folder(place, size) if files else Stored(place, size)


def statistics_of(place: str, room: str, network: Network) -> tuple[FeatureSet, str]:
    """The statistics of an ``.npz``, and what identifies the file.

    Args:
        place: local path or URL.
        room: local folder for a copy.
        network: they must be of its features.

    Raises:
        UserError: it holds none, or those of another network.
        OSError: nothing is there, or the store can't be reached.
    """
    pictures = NpzFile(place, room)
    if pictures.statistics is None:
        raise UserError(f"{place} holds pictures and no statistics, mu and sigma")
    pictures.num_pictures = 0
    (features,) = features_of(pictures, [network], 1)
    return features, pictures.digest


def in_one_size(sets: Sequence[PictureSet]) -> list[PictureSet]:
    """Crops picture files to the smallest side of all sets: a network's resizing would otherwise
    tell one size from the other. What has one size already, an `.npz` or a data set, keeps it.
    """
    side = min((each.side for each in sets if each.side is not None), default=0)
    files = (Folder, Stored)
    return [each.cropped(side) if isinstance(each, files) else each for each in sets]
