# SPDX-License-Identifier: Apache-2.0
"""Several files of one name with braces and stars, on a disk or in a store."""

from __future__ import annotations

import glob
from fnmatch import fnmatchcase

from ahpa_scale import storage
from ahpa_scale.data.sources.extras import extra
from ahpa_scale.data.sources.places import existing_file
from ahpa_scale.errors import UserError

#: Most files that a name may mean.
_MOST = 1_000_000
_STARS = "*?["


def has_pattern(place: str) -> bool:
    """Whether a name may mean several files."""
    return any(letter in place for letter in ("{", *_STARS))


def shards_of(place: str) -> list[str]:
    """The files that a name means: braces in their order, stars sorted.

    Raises:
        UserError: no file is there, the braces don't match, or a name is there twice.
        OSError: the store can't be reached.
    """
    found = [each for name in _without_braces(place) for each in _without_stars(name)]
    if not found:
        raise UserError(f"no file {place}")
    if len(set(found)) != len(found):
        raise UserError(f"{place} names {next(f for f in found if found.count(f) > 1)} twice")
    for each in found:
        # A store is not asked for each of thousands: who opens the file finds out.
        if not storage.is_remote(each):
            existing_file(each)
    return found


def _without_braces(place: str) -> list[str]:
    if "{" not in place:
        return [place]
    with extra("webdataset", place):
        from braceexpand import braceexpand
    names: list[str] = []
    try:
        for name in braceexpand(place):
            names.append(name)
            if len(names) > _MOST:
                break
    except ValueError as error:
        raise UserError(f"{place}: {error}") from None
    if len(names) > _MOST:
        raise UserError(f"{place} names more than {_MOST} files")
    return names


def _without_stars(place: str) -> list[str]:
    if not any(letter in place for letter in _STARS):
        return [place]
    if not storage.is_remote(place):
        return sorted(glob.glob(str(storage.local_path(place)), recursive=True))
    parts = place.split("/")
    first = next(i for i, part in enumerate(parts) if any(letter in part for letter in _STARS))
    folder, patterns = "/".join(parts[:first]), parts[first:]
    return [
        storage.join(folder, name)
        for name in sorted(storage.find(folder))
        if len(pieces := name.split("/")) == len(patterns)
        and all(map(fnmatchcase, pieces, patterns))
    ]
