# SPDX-License-Identifier: Apache-2.0
"""Packs drawn pictures into one file or into MDS shards, whole or not at all.

Shapes: N pictures, S the picture's side.
"""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ahpa_scale import storage
from ahpa_scale.commands.sample.pictures import Pictures
from ahpa_scale.data.writing import ShardWriter
from ahpa_scale.progress import progress_bar
from ahpa_scale.sampling.grid import image_grid
from ahpa_scale.storage.folders import atomic_folder

#: The file that makes a folder a set of shards.
MDS_INDEX = "index.json"
_COLUMNS = {"image": "png", "index": "int", "label": "int"}


def pack(pictures: Pictures, out: str, layout: str, overwrite: bool, shown: bool) -> None:
    """Packs pictures.

    Args:
        pictures: the PNG files, all there.
        out: file, folder or URL.
        layout: ``npz``, ``mds`` or ``grid``.
        overwrite: replace a folder of shards.
        shown: whether to show progress.
    """
    with progress_bar(total=pictures.num, unit="picture", desc=layout, shown=shown) as bar:

        def told() -> Iterator[NDArray[np.uint8]]:
            for picture_SS3 in pictures.read():
                yield picture_SS3
                bar.update()

        labels = [pictures.label(n) for n in range(pictures.num)]
        if layout == "npz":
            _npz(told(), labels, out)
        elif layout == "mds":
            _mds(told(), labels, out, overwrite)
        else:
            _grid(list(told()), pictures, out)


def _npz(pictures: Iterable[NDArray[np.uint8]], labels: list[int], out: str) -> None:
    """ADM's layout: ``arr_0`` uint8 [N, S, S, 3], ``arr_1`` int64 [N], streamed and uncompressed.

    See evaluations/README.md of guided-diffusion (Dhariwal and Nichol 2021, arXiv 2105.05233).
    """
    remaining = iter(pictures)
    first = next(remaining)
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(labels), *first.shape)}
    with _new_file(out) as path:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            with archive.open("arr_0.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, header)
                file.write(first.tobytes())
                for picture_SS3 in remaining:
                    file.write(picture_SS3.tobytes())
            with archive.open("arr_1.npy", "w") as file:
                np.lib.format.write_array(file, np.array(labels))
        storage.put_file(path, out)


def _mds(
    pictures: Iterable[NDArray[np.uint8]], labels: list[int], out: str, overwrite: bool
) -> None:
    """Shards with columns image, index and label; their index is written last."""
    if not storage.is_remote(out):
        with atomic_folder(out, replace=overwrite, marker=MDS_INDEX) as content:
            _write_shards(pictures, labels, str(content), None)
        return
    with tempfile.TemporaryDirectory(prefix="ahpa-scale-") as room:
        _write_shards(pictures, labels, room, out)


def _write_shards(
    pictures: Iterable[NDArray[np.uint8]], labels: list[int], room: str, url: str | None
) -> None:
    from PIL import Image

    writer = ShardWriter(room, url, columns=_COLUMNS)
    try:
        for index, (label, picture_SS3) in enumerate(zip(labels, pictures, strict=True)):
            image = Image.fromarray(picture_SS3)
            writer.write({"image": image, "index": index, "label": label})
        writer.finish()
    except BaseException:
        # The writer's own context manager would write an index of the incomplete set here.
        writer.cancel_future_jobs()
        if writer.failure is not None:
            raise writer.failure from None
        raise


def _grid(images: list[NDArray[np.uint8]], pictures: Pictures, out: str) -> None:
    """A row for each class, its name at the left."""
    rows = min(len(pictures.labels), len(images))
    columns = -(-len(images) // rows)
    # Picture n is in row n % rows; a place without picture stays white.
    white = np.full_like(images[0], 255)
    order = [row + column * rows for row in range(rows) for column in range(columns)]
    placed = [images[n] if n < len(images) else white for n in order]
    names = [pictures.names[label] for label in pictures.labels[:rows]] if pictures.names else None
    stacked_N3SS = torch.from_numpy(np.stack(placed)).permute(0, 3, 1, 2)
    content = io.BytesIO()
    image_grid(stacked_N3SS, columns, names).save(content, "PNG")
    storage.write_bytes(out, content.getvalue())


@contextmanager
def _new_file(out: str) -> Iterator[Path]:
    """A path for a file that is then moved to `out`; on a local disk it lies beside `out`."""
    options: dict[str, Any] = {"prefix": "ahpa-scale-"}
    if not storage.is_remote(out):
        target = storage.local_path(out)
        target.parent.mkdir(parents=True, exist_ok=True)
        options = {"prefix": f".{target.name}.", "dir": target.parent}
    with tempfile.TemporaryDirectory(**options) as room:
        yield Path(room, "file")
