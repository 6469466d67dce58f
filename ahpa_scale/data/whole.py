# SPDX-License-Identifier: Apache-2.0
"""Whether all of a data set's shards are there, by names and sizes: before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress

from ahpa_scale import storage
from ahpa_scale.data.index import Index
from ahpa_scale.errors import HostError

ADVICE = "copy or prepare the data again"


class ShardError(HostError):
    """A shard that can't be had, or isn't what the data set's index says."""


def check_whole(url: str, index: Index) -> None:
    """Compares the shards that lie there with the index; a store is asked for one listing.

    Raises:
        ShardError: naming the first shard that is missing or has another size.
        UnreachableError: the store does not answer.
    """
    # A web server need not list what it has.
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
