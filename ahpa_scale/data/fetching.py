# SPDX-License-Identifier: Apache-2.0
"""Fetches a data set's shards to a node's cache through our own storage, and checks each one."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from streaming import Stream
from streaming.base.format.base.reader import Reader
from streaming.base.hashing import get_hash

from ahpa_scale import storage
from ahpa_scale.data.card import SHARD_HASH
from ahpa_scale.data.index import Index, ShardFile
from ahpa_scale.data.sharing import ARRIVING
from ahpa_scale.data.whole import ADVICE, ShardError
from ahpa_scale.errors import HostError
from ahpa_scale.unreachable import UnreachableError

_log = logging.getLogger(__name__)


class CacheError(OSError, HostError):
    """The local disk can't store a shard."""


class ShardStream(Stream):
    """A data set in a folder or store with a cache, or one that is read in place.

    A shard gets its name in the cache only after its size and hash match the index.

    Args:
        index: index of the data set; streaming reads it from `local`, see `settle_index`.
        remote: where the data set is; None if it is read in place, from `local`.
        local: the cache folder.
    """

    def __init__(self, index: Index, remote: str | None, local: str) -> None:
        super().__init__(local=local)
        # Set here, because streaming accepts fewer kinds of stores than our storage.
        self.remote = remote
        self._files = {shard.raw_data.basename: shard.raw_data for shard in index.shards}

    def set_up_local(self, shards: Sequence[Reader], usage: NDArray[np.int64]) -> None:
        """Records which shards the cache holds; one of a wrong size is fetched again."""
        if self.remote is not None:
            for info in self._files.values():
                path = Path(self.local, info.basename)
                if path.is_file() and path.stat().st_size != info.bytes:
                    _log.warning("%s has another size than in the index: fetching it again", path)
                    path.unlink(missing_ok=True)
        super().set_up_local(shards, usage)

    def get_index_size(self) -> int:
        """Bytes that the index takes of the cache."""
        return 0 if self.remote is None else int(super().get_index_size())

    def _download_file(self, from_basename: str, to_basename: str | None = None) -> str:
        if self.remote is None:
            raise ShardError(f"{Path(self.local, from_basename)} is missing: {ADVICE}")
        url = storage.join(self.remote, from_basename)
        path = Path(self.local, to_basename or from_basename)
        # A random name, because others who share the cache may be fetching the same shard.
        arriving = path.with_name(f".{path.name}.{secrets.token_hex(4)}{ARRIVING}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if storage.get_proved(url, arriving, partial(_is_told, self._files[from_basename])):
                os.replace(arriving, path)
                return str(path)
        except (UnreachableError, storage.RefusedError):
            raise
        except FileNotFoundError:
            raise ShardError(f"{url} is missing: {ADVICE}") from None
        except OSError as error:
            text = f"cannot keep {url} as {path}: {os.strerror(error.errno or 0)}"
            raise CacheError(error.errno, text) from error
        finally:
            arriving.unlink(missing_ok=True)
        raise ShardError(f"{url} isn't what the index says: {ADVICE}")


def _is_told(info: ShardFile, path: Path) -> bool:
    """Whether a file has the size and hash that the index says."""
    content = path.read_bytes()
    hashed = get_hash(SHARD_HASH, content) in info.hashes.values()
    return len(content) == info.bytes and hashed
