# SPDX-License-Identifier: Apache-2.0
"""Small files on local disks and object stores: the one module that knows fsspec.

Every write is atomic. Locally a temporary file is synced and renamed; in an object store one put
makes the whole object visible at once. torch is not imported; fsspec only when a URL needs it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ahpa_scale import paths
from ahpa_scale.errors import UserError

#: Extras of this package by URL scheme; s3 comes with every install.
EXTRAS = {"gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "adl": "azure"}
_PART = 8 << 20


def scheme(url: str | os.PathLike[str]) -> str:
    """The URL's scheme in lower case, or '' for a local path (`file://` counts as local)."""
    return str(url).partition("://")[0].lower() if paths.is_url(url) else ""


def is_remote(url: str | os.PathLike[str]) -> bool:
    """Whether `url` names an object store rather than a local path."""
    return paths.is_url(url)


def local_path(url: str | os.PathLike[str]) -> Path:
    """The local path that `url` names, with `~` expanded.

    Raises:
        UserError: it names none, see `paths.resolve`.
    """
    return Path(paths.local(url))


def join(url: str | os.PathLike[str], *parts: str) -> str:
    """Append path parts to a local path or a URL."""
    if is_remote(url):
        return "/".join([str(url).rstrip("/"), *(part.strip("/") for part in parts)])
    return str(local_path(url).joinpath(*parts))


def exists(url: str | os.PathLike[str]) -> bool:
    """Whether a file, folder or object of this name exists."""
    if not is_remote(url):
        return local_path(url).exists()
    with _clear_errors(url):
        return bool(_filesystem(url).exists(str(url)))


def read_bytes(url: str | os.PathLike[str], limit: int | None = None) -> bytes:
    """The whole content of a file or object.

    Args:
        url: what to read.
        limit: bytes that it may have; no more than one above is taken into memory.

    Raises:
        FileNotFoundError: nothing of this name exists.
        UserError: unknown scheme, the scheme's package is not installed, or above the limit.
        OSError: the store refused or could not be reached.
    """
    most = -1 if limit is None else limit + 1
    if not is_remote(url):
        with local_path(url).open("rb") as file:
            content = file.read(most)
    else:
        with _clear_errors(url):
            if limit is None:
                return bytes(_filesystem(url).cat_file(str(url)))
            with _filesystem(url).open(str(url), "rb") as remote:
                content = bytes(remote.read(most))
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
        OSError: the disk or the store refused, or could not be reached.
    """
    if is_remote(url):
        with _clear_errors(url):
            _filesystem(url).pipe_file(str(url), content)
        return
    target = local_path(url)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only the owner can read; data sets are shared.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def write_text(url: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text whole or not at all; errors as `write_bytes`."""
    write_bytes(url, text.encode("utf-8"))


def remove(url: str | os.PathLike[str]) -> None:
    """Delete one file or object; one that is not there is no error."""
    if not is_remote(url):
        local_path(url).unlink(missing_ok=True)
        return
    with _clear_errors(url):
        filesystem = _filesystem(url)
        if filesystem.exists(str(url)):
            filesystem.rm_file(str(url))


def find(url: str | os.PathLike[str]) -> dict[str, int]:
    """Every file or object below a folder, by its path in it, with its size in bytes.

    An object store is asked once per thousand objects, whatever folders they lie in. Empty where
    nothing is there. Errors as `write_bytes`.
    """
    if not is_remote(url):
        return dict(_local_files(local_path(url)))
    with _clear_errors(url):
        filesystem = _filesystem(url)
        top_name = f"{filesystem._strip_protocol(str(url)).rstrip('/')}/"
        try:
            found = filesystem.find(str(url), detail=True)
        except FileNotFoundError:
            return {}
        return {
            # Some stores answer with a leading slash, some without.
            name.lstrip("/").removeprefix(top_name.lstrip("/")): int(entry["size"] or 0)
            for name, entry in found.items()
            if entry["type"] == "file"
        }


def _local_files(top: Path) -> Iterator[tuple[str, int]]:
    for folder, folders, names in os.walk(top):
        # Hidden ones are on their way to their names.
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in (name for name in names if not name.startswith(".")):
            path = Path(folder, name)
            with suppress(FileNotFoundError):  # removed since it was listed
                yield path.relative_to(top).as_posix(), path.stat().st_size


def put_file(local: Path, url: str | os.PathLike[str]) -> None:
    """Move a local file to its place: renamed on its own disk, else copied to the store whole or
    not at all, in several parts where it is large. Errors as `write_bytes`.
    """
    if not is_remote(url):
        target = local_path(url)
        with local.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(local, target)
        sync_folder(target.parent)
        return
    options: dict[str, int] = {}
    if scheme(url) == "s3":
        # s3fs' own ten parts of 50 MB would lie in memory, and copying each of them stops the
        # threads beside. A part is never so small that an object has more than 10,000.
        size = max(_PART, -(-local.stat().st_size // 10_000))
        options = {"chunksize": size, "max_concurrency": 4}
    with _clear_errors(url):
        _filesystem(url).put_file(str(local), str(url), **options)
    local.unlink()


def get_file(
    url: str | os.PathLike[str], local: Path, moved: Callable[[int], None] | None = None
) -> None:
    """Copy a file or object to a local path; errors as `read_bytes`.

    Args:
        url: what to copy.
        local: where to.
        moved: told now and then how many bytes have come.
    """
    if not is_remote(url):
        shutil.copyfile(local_path(url), local)
        return
    options: dict[str, Any] = {}
    if moved is not None:
        from fsspec.callbacks import Callback

        options["callback"] = Callback(hooks={"moved": lambda size, value, **_: moved(value)})
    with _clear_errors(url):
        _filesystem(url).get_file(str(url), str(local), **options)


def sync_folder(folder: Path) -> None:
    """Flush a local folder's entries to disk, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_folder(target: str | os.PathLike[str], *, replace: bool = False) -> Iterator[Path]:
    """Fill a hidden sibling of the local folder `target`; rename it into place on success.

    A failure removes the sibling. A killed process leaves it behind under a name that no reader
    looks at; the next call for the same target removes it, recognised by its released lock.

    Args:
        target: the folder to appear; its parents are made.
        replace: whether an existing, non-empty target is replaced.

    Raises:
        FileExistsError: target is a file, or a non-empty folder and `replace` is false.
    """
    final = local_path(target).absolute()
    if final.is_file() or (final.is_dir() and any(final.iterdir()) and not replace):
        raise FileExistsError(f"{final} exists already; choose another place")
    final.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{final.name}.partial-"
    _remove_abandoned(final.parent, prefix)
    room = Path(tempfile.mkdtemp(prefix=prefix, dir=final.parent))
    lock = _lock(room)
    assert lock is not None
    try:
        content = room / "content"
        content.mkdir()
        yield content
        _sync_tree(content)
        if final.exists():
            os.rename(final, room / "old")
        os.rename(content, final)
        sync_folder(final.parent)
    finally:
        shutil.rmtree(room, ignore_errors=True)
        os.close(lock)


def _lock(room: Path) -> int | None:
    """An open descriptor that holds the room's lock, or None when a living process holds it."""
    import fcntl

    descriptor = os.open(room / "lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_abandoned(parent: Path, prefix: str) -> None:
    for room in parent.glob(f"{prefix}*"):
        # Without its lock file a room is being made this very moment.
        if not (room / "lock").exists():
            continue
        lock = _lock(room)
        if lock is not None:
            shutil.rmtree(room, ignore_errors=True)
            os.close(lock)


def _sync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _filesystem(url: str | os.PathLike[str]) -> Any:
    """The fsspec file system of a URL, which sees other processes' writes at once."""
    import fsspec

    options: dict[str, Any] = {"use_listings_cache": False}
    endpoint = os.environ.get("S3_ENDPOINT_URL")
    # Composer and streaming read this variable; s3fs by itself does not.
    if scheme(url) == "s3" and endpoint:
        options["client_kwargs"] = {"endpoint_url": endpoint}
    return fsspec.filesystem(scheme(url), **options)


@contextmanager
def _clear_errors(url: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what fsspec and its back ends raise into one line that names the URL."""
    kind = scheme(url)
    try:
        yield
    except ImportError as error:
        extra = EXTRAS.get(kind)
        advice = f"pip install 'ahpa-scale[{extra}]'" if extra else str(error)
        raise UserError(f"{url}: {kind}:// needs a package that is not here: {advice}") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"nothing at {url}") from error
    except ValueError as error:
        if "Protocol not known" in str(error):
            known = "s3://, gs://, az:// or a local path"
            raise UserError(f"unknown storage scheme {kind}:// in {url}; use {known}") from error
        raise
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise OSError(f"cannot use {url}: {text}") from error
