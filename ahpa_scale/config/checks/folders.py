# SPDX-License-Identifier: Apache-2.0
"""Tries the folders and stores that a run writes to, before anything is built."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

from ahpa_scale import storage
from ahpa_scale.config.checks.data import check_placeholders
from ahpa_scale.config.errors import ConfigError, HostError
from ahpa_scale.config.schema import Config
from ahpa_scale.errors import UserError
from ahpa_scale.unreachable import UnreachableError
from ahpa_scale.writable import try_to_write

#: Most bytes of a socket's path on Linux; bytes of "/pymp-12345678/listener-12345678" below TMPDIR.
_SOCKET_PATH, _SOCKET_NAME = 107, 32


def check_folders(config: Config) -> None:
    """Writes to every place that the run will write to, from this host. Nothing is left there.

    Raises:
        ConfigError: a place still has the placeholder of the shipped YAMLs.
        HostError: a place can't be written to, or TMPDIR is too long for loaders' workers.
        UnreachableError: a store does not answer.
    """
    check_placeholders(config)
    if config.data.num_workers:
        _check_socket_paths()
    for key, place in written_places(config):
        try:
            try_to_write(place)
        except UnreachableError:
            raise
        except (OSError, UserError) as error:
            refused = isinstance(error, storage.RefusedError)
            advice = "check its name and the credentials" if refused else "name another place"
            problem = f"{place} can't be written to ({error}); {advice}"
            raise HostError(str(ConfigError(config.source_of(key), key, problem))) from None


def written_places(config: Config) -> Iterator[tuple[str, str]]:
    """The places that a run writes to, each with the key that names it."""
    yield "output_dir", config.output_dir
    saved = config.checkpoint.save_folder
    if saved is not None:
        yield "checkpoint.save_folder", saved
        if storage.is_remote(saved):
            # Files wait there before their upload to the store.
            yield "TMPDIR", _spool()
    if config.data.cached:
        yield "data.local", str(config.data.local)
    if config.parallelism.offload_folder is not None:
        yield "parallelism.offload_folder", config.parallelism.offload_folder


def _check_socket_paths() -> None:
    """Workers hand batches over through sockets in the temporary folder. A worker that can't open
    one only prints a traceback, and its rank waits for the batch for good.
    """
    folder, most = _spool(), _SOCKET_PATH - _SOCKET_NAME
    length = len(os.fsencode(folder))
    if length > most:
        raise HostError(
            f"TMPDIR: {folder} has {length} characters, and the sockets of data.num_workers need "
            f"a folder of at most {most}; name a shorter one"
        )


def _spool() -> str:
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:  # no candidate takes a file
        return os.environ.get("TMPDIR", "/tmp")
