# SPDX-License-Identifier: Apache-2.0
"""Pictures whose pixels lie in one array: of an `.npz`, or of idx files as those of MNIST.

Shapes: N pictures, H W their sides.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ahpa_scale import storage
from ahpa_scale.data.idx import SIDE, framed, read_split
from ahpa_scale.data.sources.base import SourceOptions
from ahpa_scale.data.sources.classes import ONE_CLASS, coded
from ahpa_scale.data.sources.npz_arrays import ArrayFile
from ahpa_scale.data.sources.places import existing_file
from ahpa_scale.errors import UserError

#: Names of arrays in an `.npz`; `arr_0` and `arr_1` are ADM's.
_IMAGES = ("images", "arr_0", "image", "x")
_LABELS = ("labels", "arr_1", "label", "y")
_CLASSES = ("classes", "class_names")
_IDX = re.compile(r"(?P<stem>[^/]+)-(images-idx3|labels-idx1)-ubyte(\.gz)?")


class Pixels:
    """Pictures of equal sizes in an array, see `Collection`.

    Args:
        place: what the user named.
        images_NHWC: uint8 [N, H, W, 3] or [N, H, W]; a memory map works too.
        labels_N: integers.
        classes: class names; None if there are none.
        stamp: identifies the content.
        room: what to keep while the pictures are read.
    """

    left_out: str | None = None

    def __init__(
        self,
        place: str,
        images_NHWC: NDArray[np.uint8],
        labels_N: NDArray[np.int64],
        classes: tuple[str, ...] | None,
        stamp: str,
        room: object = None,
    ) -> None:
        self.place, self.stamp, self.classes, self.labels_N = place, stamp, classes, labels_N
        self.description = place.rstrip("/").rpartition("/")[2]
        self._images_NHWC, self._room = images_NHWC, room

    def name(self, position: int) -> str:
        """The picture's number."""
        return str(position)

    def size_of(self, position: int) -> int:
        """Bytes of a picture."""
        return int(self._images_NHWC[0].nbytes)

    def open(self, position: int) -> NDArray[np.uint8]:
        """The pixels, uint8 [H, W, 3] or [H, W]."""
        return np.ascontiguousarray(self._images_NHWC[position])


def open_npz(place: str, options: SourceOptions) -> Pixels:
    """Pictures and labels of an `.npz`; a remote one is copied first.

    Args:
        place: local path or URL.
        options: `image_column`, `label_column` and `class_depth` 0 are used.

    Raises:
        UserError: it is damaged, or lacks pictures or labels.
    """
    room = None
    if storage.is_remote(place):
        room = tempfile.TemporaryDirectory(prefix="ahpa-scale-")
        path = Path(room.name, "pictures.npz")
        storage.get_file(place, path)
    else:
        path = existing_file(place)
    file = ArrayFile(path, place)
    images_NHWC = _checked(file.one_of(_IMAGES, options.image_column, "pictures"), place)
    count = len(images_NHWC)
    names = file.find(_CLASSES)
    classes: tuple[str, ...] | None = None
    if options.class_depth == 0:
        labels_N, classes = np.zeros(count, np.int64), ONE_CLASS
    else:
        told = file.one_of(_LABELS, options.label_column, "labels")
        if told.shape != (count,) or told.dtype.kind not in "iuU":
            raise UserError(
                f"{place}: labels are {told.dtype} {list(told.shape)}, and {count} pictures need "
                f"{count} whole numbers or names"
            )
        classes, labels_N = coded(told.tolist())
        if classes is None and names is not None:
            classes = tuple(str(name) for name in names.tolist())
    stamp = f"{path.stat().st_size} bytes"
    return Pixels(place, images_NHWC, labels_N, classes, stamp, (file, room))


def open_idx(place: str, options: SourceOptions, stem: str | None = None) -> Pixels:
    """Pictures and labels of a split of idx files, padded as `unpack-idx` pads them.

    Args:
        place: local path or URL of a file of pictures or labels; or of the folder, with a stem.
        options: `class_depth` 0 is used.
        stem: the split in the folder, 'train' or 't10k'.

    Raises:
        UserError: a file is missing or damaged.
    """
    folder = place
    if stem is None:
        folder, _, name = place.rpartition("/")
        match = _IDX.fullmatch(name)
        if match is None:
            raise UserError(f"{place} is no idx file of pictures or labels")
        stem, folder = match["stem"], folder or "."
    with tempfile.TemporaryDirectory(prefix="ahpa-scale-") as room:
        local = storage.local_path(folder) if not storage.is_remote(folder) else Path(room)
        if storage.is_remote(folder):
            for each in storage.find(folder):
                match = _IDX.fullmatch(each)
                if match is not None and match["stem"] == stem:
                    storage.get_file(storage.join(folder, each), local / each)
        images_NHW, labels_N = read_split(local, stem)
    side = max(SIDE, *images_NHW.shape[1:])
    stamp = f"{stem}, {len(labels_N)} pictures"
    classes, codes_N = None, labels_N.astype(np.int64)
    if options.class_depth == 0:
        classes, codes_N = ONE_CLASS, np.zeros_like(codes_N)
    return Pixels(place, framed(images_NHW, side), codes_N, classes, stamp)


def is_idx(name: str) -> bool:
    """Whether a file of this name is one of idx."""
    return _IDX.fullmatch(name.rpartition("/")[2]) is not None


def stems_of(names: Iterable[str]) -> list[str]:
    """The splits that a folder's idx files hold, sorted."""
    matches = (_IDX.fullmatch(name) for name in names)
    return sorted({match["stem"] for match in matches if match is not None})


def _checked(images: NDArray[np.generic], place: str) -> NDArray[np.uint8]:
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    coloured = images.ndim == 4 and images.shape[3] == 3
    if images.dtype != np.uint8 or not (coloured or images.ndim == 3) or not images.size:
        raise UserError(
            f"{place} holds {images.dtype} {list(images.shape)} as pictures; they must be uint8 "
            "[N, H, W, 3] or [N, H, W]"
        )
    return images  # type: ignore[return-value]
