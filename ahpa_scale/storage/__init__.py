# SPDX-License-Identifier: Apache-2.0
"""Files on local disks and in object stores: the one package that reads and writes with fsspec.

Every write is atomic. Locally a temporary file is synced and renamed; in an object store one put
makes the whole object visible at once. A store that does not answer is asked again for minutes.
torch is never imported, and fsspec only when a URL needs it.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from ahpa_scale.disk_errors import naming
from ahpa_scale.errors import UserError
from ahpa_scale.storage.disk import local_files, move_into_place, new_file_beside, sync_folder
from ahpa_scale.storage.folders import atomic_folder, entries, is_free, kept_room
from ahpa_scale.storage.patience import (
    PATIENCE,
    Progress,
    asking_once,
    patience_seconds,
    patiently,
)
from ahpa_scale.storage.ranges import open_forwards, read_range
from ahpa_scale.storage.remote import RefusedError, clear_errors, open_store
from ahpa_scale.storage.urls import is_remote, join, local_path, scheme
from ahpa_scale.unreachable import UnreachableError

__all__ = [
    "PATIENCE",
    "RefusedError",
    "asking_once",
    "atomic_folder",
    "entries",
    "exists",
    "find",
    "get_file",
    "get_proved",
    "is_free",
    "is_remote",
    "join",
    "kept_room",
    "local_path",
    "open_forwards",
    "patience_seconds",
    "put_file",
    "read_bytes",
    "read_range",
    "read_text",
    "remove",
    "scheme",
    "sync_folder",
    "write_bytes",
    "write_new",
    "write_text",
]

_PART = 8 << 20
T = TypeVar("T")


def exists(url: str | os.PathLike[str]) -> bool:
    """Whether a file, folder or object of this name exists. Errors as `write_bytes`."""
    if not is_remote(url):
        return local_path(url).exists()
    try:
        # fsspec's own `exists` returns False on every error.
        _ask(url, lambda store, path: store.info(path))
    except FileNotFoundError:
        return False
    return True


def read_bytes(url: str | os.PathLike[str], limit: int | None = None) -> bytes:
    """The whole content of a file or object.

    Args:
        url: what to read.
        limit: most bytes that it may have; at most one more is read into memory.

    Raises:
        FileNotFoundError: nothing of this name exists.
        UserError: unknown scheme, the scheme's package is not installed, or above the limit.
        RefusedError: the store said no.
        UnreachableError: the store did not answer within the time that PATIENCE sets.
        OSError: the local disk refused.
    """
    most = -1 if limit is None else limit + 1

    def read(store: Any, path: str) -> bytes:
        if limit is None:
            return bytes(store.cat_file(path))
        with store.open(path, "rb") as remote:
            return bytes(remote.read(most))

    if is_remote(url):
        content = _ask(url, read)
    else:
        with local_path(url).open("rb") as file:
            content = file.read(most)
    if limit is not None and len(content) > limit:
        raise UserError(f"{url} has more than {limit} bytes, too many for what it should be")
    return content


def read_text(url: str | os.PathLike[str], limit: int | None = None) -> str:
    """The content of a UTF-8 file or object; arguments and errors as `read_bytes`."""
    return read_bytes(url, limit).decode("utf-8")


def write_bytes(url: str | os.PathLike[str], content: bytes) -> None:
    """Write a file or object whole or not at all, replacing what was there.

    Raises:
        UserError: unknown scheme, or the scheme's package is not installed.
        RefusedError: the store said no.
        UnreachableError: the store did not answer within the time that PATIENCE sets.
        OSError: the local disk refused.
    """
    if is_remote(url):
        _ask(url, lambda store, path: store.pipe_file(path, content))
        return
    target = local_path(url)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = new_file_beside(target)
    try:
        with naming(target), os.fdopen(descriptor, "wb") as file:
            file.write(content)
        move_into_place(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_new(url: str | os.PathLike[str], content: bytes) -> None:
    """As `write_bytes`, but whatever is there already stays, also if it came a moment ago. Stores
    that know no such condition replace it.
    """
    if is_remote(url):
        try:
            _ask(url, lambda store, path: store.pipe_file(path, content, mode="create"))
        except (FileExistsError, RefusedError):
            if not exists(url):
                raise
        return
    target = local_path(url)
    # A name of its own, so that the link below can't meet a half-written file.
    written = target.with_name(f".{target.name}-{uuid.uuid4().hex}")
    write_bytes(written, content)
    try:
        with suppress(FileExistsError):
            os.link(written, target)
    except OSError:
        if not target.exists():  # a file system without links
            move_into_place(written, target)
    finally:
        written.unlink(missing_ok=True)


def write_text(url: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text whole or not at all; errors as `write_bytes`."""
    write_bytes(url, text.encode("utf-8"))


def remove(url: str | os.PathLike[str]) -> None:
    """Delete one file or object; a missing one is no error. Errors as `write_bytes`."""
    try:
        if is_remote(url):
            _ask(url, lambda store, path: store.rm_file(path))
        else:
            local_path(url).unlink()
    except FileNotFoundError:
        pass


def modified(url: str | os.PathLike[str]) -> float:
    """When a file was last written, by the clock of its disk or store, in seconds since 1970.

    Raises:
        FileNotFoundError: there is none.
        NotImplementedError: the store does not tell.
        UnreachableError: the store does not answer.
    """
    if not is_remote(url):
        return local_path(url).stat().st_mtime
    return float(_ask(url, lambda store, path: store.modified(path).timestamp()))


def find(url: str | os.PathLike[str]) -> dict[str, int]:
    """Size in bytes of every file or object below a folder, by its path in the folder.

    An object store is asked once per thousand objects, whatever their folders. The result is empty
    only if nothing is there; a failed listing is an error. Errors as `write_bytes`.
    """
    if not is_remote(url):
        return dict(local_files(local_path(url)))
    try:
        return _ask(url, lambda store, path: dict(_listed(store, path)))
    except FileNotFoundError:
        return {}


def _listed(store: Any, path: str) -> Iterator[tuple[str, int]]:
    from fsspec.asyn import AsyncFileSystem
    from fsspec.implementations.cached import CachingFileSystem
    from fsspec.spec import AbstractFileSystem

    if isinstance(store, CachingFileSystem):
        store = store.fs
    # Stores that walk from folder to folder skip what they can't list, unless told otherwise.
    own = getattr(type(store), "_find", type(store).find)
    walks = own in (AsyncFileSystem._find, AbstractFileSystem.find)
    options = {"on_error": "raise"} if walks else {}
    try:
        listing = store.find(path, detail=True, **options)
    except FileNotFoundError:
        store.info(path)  # raises if it is not there
        raise UnreachableError(f"{path} changed while it was listed") from None
    top_name = f"{path.rstrip('/')}/"
    for name, entry in listing.items():
        if entry["type"] == "file" and "?" not in name:
            # Web servers list names only.
            size = store.info(name)["size"] if entry["size"] is None else entry["size"]
            # Some stores answer with a leading slash, some without.
            yield name.lstrip("/").removeprefix(top_name.lstrip("/")), int(size)


def put_file(local: Path, url: str | os.PathLike[str]) -> None:
    """Move a local file to its place: rename it on a local disk, or upload it to a store whole or
    not at all, in several parts if it is large. Errors as `write_bytes`.
    """
    if not is_remote(url):
        move_into_place(local, local_path(url))
        return
    options: dict[str, int] = {}
    if scheme(url) == "s3":
        # s3fs would hold ten parts of 50 MB in memory, and copying each one blocks other threads.
        # Parts are large enough that an object has at most 10,000. Only two are sent at a time: all
        # ranks of a node send at once, and must finish before the client's timeout.
        size = max(_PART, -(-local.stat().st_size // 10_000))
        options = {"chunksize": size, "max_concurrency": 2}

    def put(store: Any, path: str, progress: Progress) -> None:
        store.put_file(str(local), path, callback=_telling(progress), **options)

    _move(url, put)
    local.unlink()


def get_file(
    url: str | os.PathLike[str], local: Path, moved: Callable[[int], None] | None = None
) -> None:
    """Copy a file or object to a local path; errors as `read_bytes`.

    Args:
        url: what to copy.
        local: where to.
        moved: called now and then with the number of bytes received.
    """
    if not is_remote(url):
        shutil.copyfile(local_path(url), local)
        return

    def get(store: Any, path: str, progress: Progress) -> None:
        told = _telling(progress, moved)
        with naming(local):
            store.get_file(path, str(local), callback=told)
        size = local.stat().st_size
        if told.size is not None and size != told.size:
            raise UnreachableError(f"{url} came short: {size} of {told.size} bytes")

    _move(url, get)


def get_proved(
    url: str | os.PathLike[str],
    local: Path,
    proves: Callable[[Path], bool],
    moved: Callable[[int], None] | None = None,
) -> bool:
    """Copy a file or object, and copy it again if the copy is damaged: a second copy repairs damage
    by the connection, but not damage in the store. Errors as `read_bytes`.

    Args:
        url: what to copy.
        local: where to.
        proves: whether a copy is intact.
        moved: as for `get_file`; the number falls when the copy is repeated.

    Returns:
        Whether the last copy is intact.
    """
    for _ in range(2):
        get_file(url, local, moved)
        if proves(local):
            return True
    return False


def _ask(url: str | os.PathLike[str], action: Callable[[Any, str], T]) -> T:
    """The result of `action` on the store and the path in it, with retries."""
    return _move(url, lambda store, path, progress: action(store, path))


def _move(url: str | os.PathLike[str], action: Callable[[Any, str, Progress], T]) -> T:
    """`_ask` for an action that moves many bytes and notes its progress."""

    def attempt(progress: Progress) -> T:
        with clear_errors(url):
            store, path = open_store(str(url))  # some stores connect here
            return action(store, path, progress)

    return patiently(url, attempt)


def _telling(progress: Progress, moved: Callable[[int], None] | None = None) -> Any:
    """An fsspec callback that notes progress and reports how many bytes have moved."""
    from fsspec.callbacks import Callback

    def hook(size: int | None, value: int, **_: Any) -> None:
        del size
        if value:
            progress.note()
        if moved is not None:
            moved(value)

    return Callback(hooks={"moved": hook})
