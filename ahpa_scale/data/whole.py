# SPDX-License-Identifier: Apache-2.0
"""Checks before training that all shards of a data set are there, by name and size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress

from ahpa_scale import storage
from ahpa_scale.data.index import Index
from ahpa_scale.errors import HostError

ADVICE = "copy or prepare the data again"


class ShardError(HostError):
    """A shard is missing, or differs from what the data set's index says."""


def check_whole(url: str, index: Index) -> None:
    """Compares the shards with the index; a store is asked for one listing.

    Raises:
        ShardError: a shard is missing or has another size; the message names the first one.
        UnreachableError: the store does not answer.
    """
    # A web server may not list its files.
    if storage.scheme(url) in ("http", "https"):
        return
    expected = {shard.raw_data.basename: shard.raw_data.bytes for shard in index.shards}
    sizes = storage.find(url) if storage.is_remote(url) else _local_sizes(url, expected)
    for name, size in expected.items():
        if sizes.get(name) != size:
            there = sizes.get(name)
            problem = "is missing" if there is None else f"has {there} bytes instead of {size}"
            raise ShardError(f"{storage.join(url, name)} {problem}: {ADVICE}")


def _local_sizes(folder: str, names: Iterable[str]) -> Mapping[str, int]:
    sizes = {}
    for name in names:  # a part may be a link to another disk, which a listing leaves out
        with suppress(FileNotFoundError, NotADirectoryError):
            sizes[name] = (storage.local_path(folder) / name).stat().st_size
    return sizes
