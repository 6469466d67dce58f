# SPDX-License-Identifier: Apache-2.0
"""Reads a user's path: a path of this machine, or the URL of an object store.

Every path option of configuration and commands goes through here once, before anything starts. The
file functions of `storage` follow the same rules. A slip is refused: taken literally, it would
make a folder named `s3:`, `file:` or `~` in the working folder. No disk and no store is touched.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from difflib import get_close_matches

from ahpa_scale.errors import UserError

#: URL schemes whose first part is a bucket, container or host. `s3:x` counts as a slip for a URL.
STORES = (
    *("s3", "s3a", "gs", "gcs", "az", "abfs", "adl", "hf", "oci", "oss"),
    *("http", "https", "sftp", "ftp"),
)
#: URL schemes of prepared data.
DATA_STORES = ("s3", "gs", "az", "abfs", "oci", "hf", "sftp", "dbfs")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/*)(.*)", re.DOTALL)
#: fsspec's chains, such as simplecache::s3://bucket/a; the last link counts.
_CHAIN = re.compile(rf".+::{_SCHEME.pattern}", re.DOTALL)
_COLON_MISSING = re.compile(rf"({'|'.join(STORES)})//(.*)", re.IGNORECASE)
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]")
_VARIABLE = re.compile(r"\$(?:\w+|\{\w+\})")
_ESCAPED = re.compile(r"%[0-9A-Fa-f]{2}")
_HUB_SET = re.compile(r"hf:(?!//)")
_HUB = re.compile(r"(?:hf://|https?://(?:www\.)?huggingface\.co/)([\w.-]+/[\w.-]+)", re.IGNORECASE)


def resolve(place: str | os.PathLike[str], stores: Collection[str] | None = None) -> str:
    """A local path, or a URL with its scheme in lower case.

    `~` and `~user` become the home folder, and `file:///x`, `file://localhost/x` and `file:/x`
    become `/x`. A relative path stays relative.

    Args:
        place: what the user wrote.
        stores: allowed URL schemes; None allows all that fsspec knows, () none.

    Raises:
        UserError: the path is empty, a slip, or of a store that is not allowed; the message gives
            the nearest path.
    """
    text = os.fspath(place)
    _refuse_odd_characters(text)
    chain = _CHAIN.fullmatch(text)
    if chain is not None:
        _check_store(text, chain[1].lower(), len(chain[2]), chain[3], stores)
        return text
    match = _SCHEME.fullmatch(text)
    if match is not None:
        name, slashes, rest = match[1].lower(), len(match[2]), match[3]
        if name == "file":
            return _refuse_odd_parts(text, _of_file_url(text, slashes, rest))
        if slashes >= 2:
            _check_store(text, name, slashes, rest, stores)
            return f"{name}:{match[2]}{rest}"
        if slashes == 1 or name in STORES:
            _check_kind(f"{name}://{rest}", name, stores)
            raise UserError(f"{text!r} is neither a path nor a URL: did you mean {name}://{rest}?")
    slip = _COLON_MISSING.fullmatch(text)
    if slip is not None:
        _check_kind(f"{slip[1]}://{slip[2]}", slip[1].lower(), stores)
        raise UserError(f"{text!r} lacks a colon: did you mean {slip[1].lower()}://{slip[2]}?")
    return _refuse_odd_parts(text, _with_home(text))


def is_url(place: str | os.PathLike[str]) -> bool:
    """Whether it names an object store rather than a local path."""
    text = os.fspath(place)
    match = _SCHEME.fullmatch(text)
    named = match is not None and match[1].lower() != "file" and len(match[2]) >= 2
    return named or _CHAIN.fullmatch(text) is not None


def local(place: str | os.PathLike[str]) -> str:
    """Like `resolve`, but allows only a path of this machine."""
    return resolve(place, ())


def data(place: str | os.PathLike[str]) -> str:
    """Like `resolve`, for prepared data that are read."""
    return resolve(place, DATA_STORES)


def source(place: str | os.PathLike[str]) -> str:
    """Like `resolve`, for pictures that are read: `hf:NAME[:SPLIT]` stays unchanged."""
    text = os.fspath(place)
    if _HUB_SET.match(text):
        _refuse_odd_characters(text)
        return text
    return resolve(place)


def vae(place: str | os.PathLike[str]) -> str:
    """Like `local`, for an autoencoder: a folder, or a hub id, which stays unchanged."""
    match = _HUB.match(os.fspath(place))
    if match is not None:
        raise UserError(f"{os.fspath(place)!r} is a URL: the hub id is {match[1]}")
    return local(place)


def _refuse_odd_characters(text: str) -> None:
    if not text.strip():
        raise UserError("names nothing: give a path")
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
        raise UserError(f"{text!r} holds a character that does not print")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UserError(f"{text!r} is not UTF-8 text: rename it")
    if text != text.strip():
        raise UserError(f"{text!r} begins or ends with a space: write {text.strip()!r}")
    if _WINDOWS.match(text) or text.startswith("\\\\"):
        raise UserError(f"{text!r} is a path of Windows: write the one that this machine has")
    if "\\" in text:
        right = text.replace("\\", "/")
        raise UserError(f"{text!r} has backslashes: did you mean {right!r}?")
    variable = _VARIABLE.search(text)
    if variable is not None:
        name = variable[0].strip("${}")
        raise UserError(
            f"{text!r}: {variable[0]} is not filled in here: write the path itself, or in a YAML "
            f"file ${{oc.env:{name}}}"
        )


def _of_file_url(text: str, slashes: int, rest: str) -> str:
    """The path of a file URL (RFC 8089). Its host must be missing or this one."""
    if _ESCAPED.search(rest):
        raise UserError(f"{text!r} has escaped characters: write the path itself, without file:")
    if slashes == 2:
        host, _, path = rest.partition("/")
        if host.lower() != "localhost":
            near = rest if host.startswith("~") else f"/{rest}"
            raise UserError(f"{text!r} names a file of the host {host!r}: did you mean {near!r}?")
        return f"/{path}"
    if slashes == 0:
        raise UserError(f"{text!r} is no file URL: did you mean {rest!r}?")
    return f"/{rest}"


def _check_kind(text: str, name: str, stores: Collection[str] | None) -> None:
    if stores is not None and name not in stores:
        good = " or ".join(f"{known}://" for known in stores)
        what = f"not among {good}, nor a local path" if stores else "not on this machine's own disk"
        raise UserError(f"{text} is {what}: name {'one of these' if stores else 'a local path'}")


def _check_store(
    text: str, name: str, slashes: int, rest: str, stores: Collection[str] | None
) -> None:
    _check_kind(text, name, stores)
    if stores is None and name not in _fsspec_knows():
        close = get_close_matches(name, STORES, n=1)
        hint = f"did you mean {close[0]}://? " if close else ""
        raise UserError(
            f"unknown storage scheme {name}:// in {text}; {hint}use s3://, gs://, az:// or a local "
            "path"
        )
    if name in STORES and (slashes > 2 or not rest):
        near = f"did you mean {name}://{rest}?" if rest else f"write {name}://BUCKET/FOLDER"
        raise UserError(f"{text!r} names no bucket: {near}")


def _fsspec_knows() -> list[str]:
    from fsspec import available_protocols

    return list(available_protocols())


def _with_home(text: str) -> str:
    if not text.startswith("~"):
        return text
    expanded = os.path.expanduser(text)
    if expanded != text:
        return expanded
    user = text.partition("/")[0].removeprefix("~")
    if user:
        raise UserError(f"{text!r}: there is no user {user!r} here; a file so named is ./{text}")
    raise UserError(f"{text!r}: this user has no home folder: set HOME, or write the whole path")


def _refuse_odd_parts(text: str, path: str) -> str:
    """Refuses parts such as `s3:` and `~`, which come from two paths joined wrongly."""
    for part in path.split("/"):
        if part == "~" or (part.endswith(":") and part[:-1].lower() in ("file", *STORES)):
            raise UserError(f"{text!r} would make a folder named {part!r}: leave it out")
    return path
