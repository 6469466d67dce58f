# SPDX-License-Identifier: Apache-2.0
"""What a URL or path names: a place on a local disk, or one in a store."""

from __future__ import annotations

import os
from pathlib import Path

from ahpa_scale import paths

#: URLs of these schemes may end in a query, which must stay behind appended parts.
_WITH_QUERY = ("http", "https")


def scheme(url: str | os.PathLike[str]) -> str:
    """The URL's scheme in lower case, or '' for a local path (`file://` counts as local).

    For a chain such as `zip://a.txt::s3://bucket/b.zip`, the scheme of its first URL.
    """
    if not paths.is_url(url):
        return ""
    return str(url).partition("://")[0].lower().rpartition("::")[2]


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
    if not is_remote(url):
        return str(local_path(url).joinpath(*parts))
    before, separator, rest = str(url).partition("://")
    path, *chained = rest.split("::")
    query = ""
    if scheme(url) in _WITH_QUERY:
        path, mark, behind = path.partition("?")
        query = mark + behind
    whole = "/".join([path.rstrip("/"), *(part.strip("/") for part in parts)])
    return "::".join([before + separator + whole + query, *chained])
