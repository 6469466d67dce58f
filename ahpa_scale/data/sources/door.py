# SPDX-License-Identifier: Apache-2.0
"""Opens the source that a user names; the kind is seen from the name, or from a folder's files."""

from __future__ import annotations

import re

from ahpa_scale import storage
from ahpa_scale.data.sources import huggingface as hf
from ahpa_scale.data.sources.arrays import is_idx, open_idx, open_npz, stems_of
from ahpa_scale.data.sources.base import Collection, SourceOptions, StoredSource
from ahpa_scale.data.sources.folder import Folder
from ahpa_scale.data.sources.mds import INDEX_NAME, MdsPictures
from ahpa_scale.data.sources.places import existing_folder
from ahpa_scale.data.sources.remote_folder import RemoteFolder
from ahpa_scale.data.sources.webdataset import WebDataset
from ahpa_scale.errors import UserError

_PACKED = re.compile(r"\.(tar\.(gz|bz2|xz|zst)|tgz|zip)$", re.IGNORECASE)


def open_source(place: str, options: SourceOptions) -> StoredSource:
    """Stored pictures of any kind.

    Args:
        place: a folder or URL of picture files, of MDS shards, of idx files, or saved by
            `datasets`; `*.tar`, `*.parquet` with braces and stars; `.npz`; an idx file;
            `hf:NAME[:SPLIT]`.
        options: how pictures are found and read.

    Raises:
        UserError: nothing of this kind is there, or it can't be used; one line says why.
        UnreachableError: a store or the hub does not answer.
        OSError: the disk or the store refused.
    """
    if options.class_depth is not None and options.label_column is not None:
        raise UserError("labels come from --class-depth or from --label-column: give one of them")
    return StoredSource(_collection(place, options), options)


def _collection(place: str, options: SourceOptions) -> Collection:
    name = place.lower()
    if place.startswith(hf.PREFIX) and not place.startswith(f"{hf.PREFIX}//"):
        return hf.open_named(place, _of_columns(place, options))
    if _PACKED.search(name):
        raise UserError(
            f"{place} is compressed, so its pictures can't be read one by one: unpack it, or make "
            "it a .tar"
        )
    if name.endswith(".tar"):
        return WebDataset(place, options)
    if name.endswith(".parquet"):
        return hf.open_parquet(place, _of_columns(place, options))
    if name.endswith(".npz"):
        return open_npz(place, _of_columns(place, options))
    if is_idx(name):
        return open_idx(place, _without_columns(place, options))
    return _of_folder(place, options)


def _of_folder(place: str, options: SourceOptions) -> Collection:
    if storage.is_remote(place):
        sizes = storage.find(place)
        if not sizes:
            raise UserError(f"nothing at {place}")
        names = {name for name in sizes if "/" not in name}
    else:
        sizes = {}
        names = {each.name for each in existing_folder(place).iterdir() if each.is_file()}
    if INDEX_NAME in names:
        return MdsPictures(place, _of_columns(place, options))
    if names & {hf.SAVED, hf.SAVED_SPLITS}:
        return hf.open_saved(place, _of_columns(place, options))
    stems = stems_of(names)
    if stems:
        stem = "train" if "train" in stems else stems[0]
        return open_idx(place, _without_columns(place, options), stem)
    _refuse_other_files(place, names)
    if options.image_column is not None:
        raise UserError(f"--image-column is for tables and tars, and {place} is a folder")
    return (
        RemoteFolder(place, options, sizes) if storage.is_remote(place) else Folder(place, options)
    )


def _refuse_other_files(place: str, names: set[str]) -> None:
    """A folder of tars or tables is named by its files, as there may be several kinds."""
    for ending in (".tar", ".parquet", ".npz"):
        if any(name.lower().endswith(ending) for name in names):
            near = storage.join(place, f"*{ending}")
            raise UserError(f"{place} holds {ending} files: did you mean {near!r}?")


def _of_columns(place: str, options: SourceOptions) -> SourceOptions:
    """The options, of a source that has no folders."""
    if options.class_depth:
        raise UserError(
            f"--class-depth {options.class_depth} is for folders and tars, and {place} has "
            "columns: give --label-column"
        )
    return options


def _without_columns(place: str, options: SourceOptions) -> SourceOptions:
    """The options, of idx files, which have neither folders nor columns."""
    for name in ("class_depth", "image_column", "label_column"):
        if getattr(options, name):
            option = name.replace("_", "-")
            raise UserError(f"--{option} is of no use: {place} has neither folders nor columns")
    return options
