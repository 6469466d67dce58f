# SPDX-License-Identifier: Apache-2.0
"""Data sets of Hugging Face's `datasets`: of the hub, saved by `save_to_disk`, or parquet files.

The library keeps them as Arrow files that are mapped into memory, so any row can be read. It
downloads a hub's set whole: its streaming mode has no random access. Pictures are taken as bytes,
and our decoder reads them as those of every other source.

Shapes: N pictures.
"""

from __future__ import annotations

import errno
import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from huggingface_hub.constants import HF_HUB_CACHE

from ahpa_scale import storage
from ahpa_scale.data.pictures.files import open_regular
from ahpa_scale.data.sources.base import SourceOptions
from ahpa_scale.data.sources.classes import ONE_CLASS, coded
from ahpa_scale.data.sources.columns import chosen_image, chosen_label
from ahpa_scale.data.sources.extras import extra
from ahpa_scale.data.sources.shards import shards_of
from ahpa_scale.errors import UserError
from ahpa_scale.unreachable import UnreachableError, causes, is_unreachable

PREFIX = "hf:"
#: Files that `save_to_disk` writes: of a set, and of several splits.
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"
_SPLIT = "train"


class HuggingFace:
    """Rows of a data set, see `Collection`.

    Args:
        place: what the user named.
        dataset: a map-style `datasets.Dataset`.
        stamp: identifies the content.
        options: `image_column`, `label_column` and `class_depth` 0 are used.
        room: what to keep while the pictures are read.
        folder: the local folder that rows may name files of, besides the library's caches.

    Raises:
        UserError: a column is missing or of a type that is no picture or label, or a row has no
            label.
    """

    left_out: str | None = None

    def __init__(
        self,
        place: str,
        dataset: Any,
        stamp: str,
        options: SourceOptions,
        room: object = None,
        folder: Path | None = None,
    ) -> None:
        import datasets

        self.place, self.stamp, self._room = place, stamp, room
        # A row may name any file of this machine, and who made the set is not trusted.
        caches = (datasets.config.HF_DATASETS_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH)
        roots = [*caches, HF_HUB_CACHE, *([folder] if folder else [])]
        self._roots = tuple(os.path.join(os.path.realpath(root), "") for root in roots)
        self.description = f"Hugging Face {place.removeprefix(PREFIX).rstrip('/')}"
        columns = dataset.features
        pictures = [name for name, kind in columns.items() if _can_be_picture(kind)]
        self._image = chosen_image(pictures, options.image_column, place)
        self._rows = dataset.select_columns([self._image])
        if isinstance(columns[self._image], datasets.Image):
            self._rows = self._rows.cast_column(self._image, datasets.Image(decode=False))
        self.classes: tuple[str, ...] | None = ONE_CLASS
        self.labels_N = np.zeros(len(dataset), np.int64)
        if options.class_depth != 0:
            others = [name for name, kind in columns.items() if _can_be_label(kind)]
            label = chosen_label(others, options.label_column, place)
            values = list(dataset.select_columns([label])[:][label])
            if None in values:
                raise UserError(f"{place}: row {values.index(None)} has no {label}")
            self.classes, self.labels_N = coded(values)
            if isinstance(columns[label], datasets.ClassLabel):
                self.classes = tuple(columns[label].names)

    def name(self, position: int) -> str:
        """The row's number."""
        return str(position)

    def size_of(self, position: int) -> int:
        """Not known without reading the row."""
        return -1

    def open(self, position: int) -> BinaryIO:
        """The row's bytes, or the local file that it names."""
        found = self._rows[position][self._image]
        if isinstance(found, bytes):
            return io.BytesIO(found)
        told = found or {}
        if told.get("bytes") is not None:
            return io.BytesIO(told["bytes"])
        if not told.get("path"):
            raise ValueError("its row is empty")
        path = os.path.realpath(told["path"])
        if not path.startswith(self._roots):
            raise ValueError(f"its row names a file outside of the data set, {path}")
        return open_regular(path)


def _can_be_picture(kind: Any) -> bool:
    import datasets

    struct = isinstance(kind, dict) and set(kind) == {"bytes", "path"}
    return isinstance(kind, datasets.Image) or struct or _dtype(kind) in ("binary", "large_binary")


def _can_be_label(kind: Any) -> bool:
    import datasets

    text = _dtype(kind)
    whole = text.startswith(("int", "uint"))
    return isinstance(kind, datasets.ClassLabel) or whole or text in ("string", "large_string")


def _dtype(kind: Any) -> str:
    return str(getattr(kind, "dtype", ""))


def open_named(place: str, options: SourceOptions) -> HuggingFace:
    """The set that `hf:NAME[:SPLIT]` names: of the hub, or a local folder.

    Raises:
        UserError: the extra is not installed, or there is no such set or split.
        UnreachableError: the hub does not answer.
    """
    name, _, split = place.removeprefix(PREFIX).partition(":")
    if not name:
        raise UserError(f"{place} names no data set: write hf:NAME or hf:NAME:SPLIT")
    folder = Path(name).expanduser()
    if any((folder / file).is_file() for file in (SAVED, SAVED_SPLITS)):
        return open_saved(str(folder), options, split, place)
    parts = name.split("/")
    local = folder.is_dir()
    config = None if local or len(parts) < 3 else parts[2]
    with _explained(place):
        import datasets

        found = datasets.load_dataset(
            str(folder) if local else "/".join(parts[:2]), config, split=split or _SPLIT
        )
    stamp = f"{found.info.config_name} {found.info.version} {found.info.dataset_size}"
    return HuggingFace(place, found, stamp, options, folder=folder if local else None)


def open_saved(
    folder: str, options: SourceOptions, split: str = "", place: str | None = None
) -> HuggingFace:
    """A folder that `save_to_disk` wrote; a remote one is copied first.

    Args:
        folder: path or URL.
        options: of the source.
        split: which one, where it holds several; empty: 'train', or the only one.
        place: what the user named, if it is not the folder.

    Raises:
        UserError: the extra is not installed, the folder is damaged, or has no such split.
    """
    place = place or folder
    local, room = (
        _here(folder, list(storage.find(folder)))
        if storage.is_remote(folder)
        else (str(storage.local_path(folder)), None)
    )
    with _explained(place):
        import datasets

        found = datasets.load_from_disk(local)
    if isinstance(found, datasets.DatasetDict):
        names = list(found)
        chosen = split or (_SPLIT if _SPLIT in names or len(names) != 1 else names[0])
        if chosen not in names:
            raise UserError(
                f"{place} has no split {chosen}: give one of {', '.join(names)}, as in "
                f"hf:{folder}:{names[0]}"
            )
        found = found[chosen]
    return HuggingFace(place, found, found._fingerprint, options, room)


def open_parquet(place: str, options: SourceOptions) -> HuggingFace:
    """Parquet files, converted to Arrow in the library's cache; remote ones are copied first.

    Args:
        place: path or URL; `{000..099}` and `*` name several files.
        options: of the source.

    Raises:
        UserError: the extra is not installed, or a file is missing or damaged.
    """
    files, room = shards_of(place), None
    if storage.is_remote(place):
        folder = files[0].rpartition("/")[0]
        local, room = _here(folder, [file.removeprefix(f"{folder}/") for file in files])
        files = [str(Path(local, file.removeprefix(f"{folder}/"))) for file in files]
    with _explained(place):
        import datasets

        cache = None if room is None else room.name
        found = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
    stamp = " ".join(f"{Path(file).name} {Path(file).stat().st_size}" for file in files)
    return HuggingFace(place, found, stamp, options, room)


def _here(folder: str, names: Sequence[str]) -> tuple[str, tempfile.TemporaryDirectory[str]]:
    """Copies files of a remote folder into a local one, which goes with the returned object."""
    room = tempfile.TemporaryDirectory(prefix="ahpa-scale-")
    copies = Path(room.name, "copies")
    for name in names:
        copy = copies / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        storage.get_file(storage.join(folder, name), copy)
    return str(copies), room


@contextmanager
def _explained(place: str) -> Iterator[None]:
    """Turns errors of the library into one line.

    Raises:
        UserError: there is no such data set, or it is damaged.
        UnreachableError: the hub does not answer.
        OSError: the disk is full.
    """
    with extra("hf", place):
        import datasets
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    except Exception as error:
        for cause in causes(error):
            if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
                raise cause from None
        if is_unreachable(error):
            raise UnreachableError(f"{place}: the hub does not answer: {_text(error)}") from error
        kinds = (ValueError, OSError, RuntimeError, datasets.exceptions.DatasetsError)
        if not isinstance(error, kinds) or isinstance(error, UserError):
            raise
        raise UserError(f"cannot read {place}: {_text(list(causes(error))[-1])}") from error
    finally:
        if shown:
            datasets.enable_progress_bars()


def _text(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
