# SPDX-License-Identifier: Apache-2.0
"""Converts idx files of MNIST and Fashion-MNIST to an image folder for `prepare`.

Shapes: N pictures, H W their sides.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ahpa_scale import storage
from ahpa_scale.data.pictures.files import open_regular
from ahpa_scale.disk_errors import naming
from ahpa_scale.errors import UserError

NAMES = {
    "fashion": (
        "t-shirt",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle-boot",
    ),
    "digits": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
}
SPLITS = {"train": "train", "test": "t10k"}
SIDE = 32
_MOST_BYTES = 1 << 32


def unpack_idx(
    folder: str, out: str, *, names: str = "fashion", limit: int | None = None, side: int = SIDE
) -> dict[str, int]:
    """Write `out`/train/<class>/<n>.png and `out`/test/..., whole or not at all.

    Class folders are called '<digit>-<name>', so that sorting them keeps the original labels. The
    28x28 pictures are padded to `side` with black, as equally on all sides as possible.

    Args:
        folder: holds train-images-idx3-ubyte and its three companions, gzipped or not.
        out: image folder to make.
        names: class names, 'fashion' or 'digits'.
        limit: use at most this many pictures of each split, the first ones.
        side: side of the written pictures.

    Returns:
        Pictures written, per split.

    Raises:
        UserError: a file is missing or damaged, or an option is invalid.
        FileExistsError: `out` is not empty.
    """
    if names not in NAMES:
        raise UserError(f"names must be one of {', '.join(NAMES)}, not {names!r}")
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, not {limit}")
    source = storage.local_path(folder)
    splits = {split: read_split(source, stem) for split, stem in SPLITS.items()}
    for split, (_, labels_N) in splits.items():
        _check_classes(labels_N, limit, split)
    with naming(out), storage.atomic_folder(out) as room:
        for split, (images_NHW, labels_N) in splits.items():
            framed_NHW = framed(images_NHW[:limit], side)
            _write_split(room / split, framed_NHW, labels_N[:limit], NAMES[names])
    return {split: len(labels_N[:limit]) for split, (_, labels_N) in splits.items()}


def load_idx(
    folder: str | Path, *, side: int = SIDE
) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Both splits of a folder of idx files, in memory.

    Args:
        folder: holds train-images-idx3-ubyte and its three companions, gzipped or not.
        side: side of the padded pictures.

    Returns:
        'train' and 'test' -> pictures uint8 [N, side, side] and labels uint8 [N].

    Raises:
        UserError: a file is missing or damaged, or the side is smaller than the pictures.
    """
    source = storage.local_path(folder)
    splits = {split: read_split(source, stem) for split, stem in SPLITS.items()}
    return {split: (framed(images, side), labels) for split, (images, labels) in splits.items()}


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an idx file of unsigned bytes, gzipped or not, in the shape that its header says.

    Raises:
        UserError: the file is damaged, or no idx file of bytes.
    """
    try:
        with open_regular(path) as file:
            return _read_array(gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file, path)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _read_array(stream: gzip.GzipFile | BinaryIO, path: Path) -> NDArray[np.uint8]:
    # Two zero bytes, type 8 (unsigned byte), number of axes; then a big-endian uint32 per axis.
    head = stream.read(4)
    if len(head) < 4 or head[:3] != b"\x00\x00\x08":
        raise UserError(f"{path} is not an idx file of bytes")
    sides = stream.read(4 * head[3])
    shape = [int.from_bytes(sides[i : i + 4], "big") for i in range(0, 4 * head[3], 4)]
    size = math.prod(shape)
    if size > _MOST_BYTES:
        raise UserError(f"{path} promises {shape}, more than {_MOST_BYTES} bytes")
    # One byte more shows that the file is too long; the rest is not unpacked.
    content = stream.read(size + 1)
    if len(content) != size:
        problem = "longer than it says" if len(content) > size else "cut short"
        raise UserError(f"{path} is {problem}: its header promises {shape}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def read_split(folder: Path, stem: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Pictures uint8 [N, H, W] and labels uint8 [N] of a split, 'train' or 't10k'.

    Raises:
        UserError: a file is missing or damaged, or they don't belong together.
    """
    images_NHW = read_idx(_find(folder, f"{stem}-images-idx3-ubyte"))
    labels_N = read_idx(_find(folder, f"{stem}-labels-idx1-ubyte"))
    if images_NHW.ndim != 3 or labels_N.ndim != 1 or len(images_NHW) != len(labels_N):
        raise UserError(
            f"pictures {list(images_NHW.shape)} and labels {list(labels_N.shape)} of {stem} in "
            f"{folder} do not belong together"
        )
    return images_NHW, labels_N


def _find(folder: Path, name: str) -> Path:
    for candidate in (folder / f"{name}.gz", folder / name):
        if candidate.is_file():
            return candidate
    raise UserError(f"no {name}(.gz) in {folder}: give the folder of the idx files")


def _check_classes(labels_N: NDArray[np.uint8], limit: int | None, split: str) -> None:
    """Refuse a limit that would drop a class, because the later labels would then change."""
    firsts_K = np.unique(labels_N, return_index=True)[1]
    needed = int(firsts_K.max(initial=-1)) + 1
    if limit is not None and limit < needed:
        raise UserError(f"limit {limit} leaves a class of {split} without pictures; use {needed}")


def framed(images_NHW: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Pictures padded to a side with black, as equally on all sides as possible.

    Raises:
        UserError: the side is smaller than the pictures.
    """
    height, width = images_NHW.shape[1:]
    if side < max(height, width):
        raise UserError(f"side {side} is smaller than the pictures, {height}x{width}")
    top, left = (side - height) // 2, (side - width) // 2
    frame = ((0, 0), (top, side - height - top), (left, side - width - left))
    return np.pad(images_NHW, frame)


def _write_split(
    folder: Path, images_NHW: NDArray[np.uint8], labels_N: NDArray[np.uint8], names: tuple[str, ...]
) -> None:
    if labels_N.size and int(labels_N.max()) >= len(names):
        raise UserError(f"label {int(labels_N.max())} has no name: there are {len(names)} classes")
    for label in np.unique(labels_N):
        (folder / f"{label}-{names[label]}").mkdir(parents=True)
    for number, (image_HW, label) in enumerate(zip(images_NHW, labels_N, strict=True)):
        Image.fromarray(image_HW).save(folder / f"{label}-{names[label]}" / f"{number:05d}.png")
