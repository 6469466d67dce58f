# SPDX-License-Identifier: Apache-2.0
"""Every byte of a checkpoint compared with what was saved, in its place or while it is copied.

For runs that go on and for people who look after checkpoints: neither torch nor Composer is
imported.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ahpa_scale import storage
from ahpa_scale.checkpoint.errors import CheckpointError
from ahpa_scale.checkpoint.find import Found
from ahpa_scale.checkpoint.manifest import MANIFEST, FileEntry, Manifest, entry_of

#: Told how many bytes of the work are done; fewer than before when a part has to be repeated.
Moved = Callable[[int], None]
_MISSING, _DAMAGED = "is missing", "isn't what was saved"


def damage(found: Found, moved: Moved) -> list[str]:
    """What is wrong with a checkpoint's files, each of them read to its end.

    Files of a store come to the temporary folder (``TMPDIR``) one after another.

    Returns:
        A text for each file that is not as it was saved; none if the checkpoint is whole.

    Raises:
        OSError: the store can't be reached, or the disk is full.
    """
    if found.problem is not None:
        return [found.problem]
    if not storage.is_remote(found.url):
        return list(_problems(found, _in_place, moved))
    with tempfile.TemporaryDirectory(prefix="ahpa-scale-") as room:
        path = Path(room, "file")

        def passing(url: str, entry: FileEntry, moved: Moved) -> str | None:
            try:
                return _copied(url, path, entry, moved)
            finally:
                path.unlink(missing_ok=True)

        return list(_problems(found, passing, moved))


def copy(found: Found, folder: Path, moved: Moved) -> list[str]:
    """Copies a checkpoint, manifest and all, into an empty local folder.

    Returns:
        What is wrong with the first file that is not as it was saved, in which case none of the
        files stay; nothing if the copy is whole.

    Raises:
        OSError: the store can't be reached, or the disk is full.
    """
    if found.problem is not None:
        return [found.problem]
    assert found.manifest is not None

    def copied(url: str, entry: FileEntry, moved: Moved) -> str | None:
        return _copied(url, folder / url.rsplit("/", 1)[-1], entry, moved)

    problem = next(_problems(found, copied, moved), None)
    if problem is not None:
        for path in folder.iterdir():
            path.unlink()
        return [problem]
    storage.write_text(folder / MANIFEST, found.manifest.to_json())
    return []


def newest_whole(candidates: Sequence[Found], attempt: Callable[[Found], list[str]]) -> Found:
    """The newest for which `attempt` (such as `damage` or `copy`) finds nothing wrong.

    Args:
        candidates: oldest first, at least one.
        attempt: what is wrong with one of them.

    Raises:
        CheckpointError: not one is whole; the message says what is wrong with the newest.
        OSError: what `attempt` raises.
    """
    first: str | None = None
    for found in reversed(candidates):
        problems = ["it is half an upload"] if found.begun else attempt(found)
        if not problems:
            return found
        first = first or f"{found.url}: {problems[0]}"
    others = f" (and none of the {len(candidates) - 1} before is whole)" if candidates[1:] else ""
    raise CheckpointError(f"{first}{others}")


def overtaken(found: Found) -> bool:
    """Whether a checkpoint was removed or written anew since it was found, as a run does that goes
    on; what was found wrong with it then means nothing.

    Raises:
        OSError: the store can't be reached.
    """
    try:
        now = storage.read_bytes(storage.join(found.url, MANIFEST))
        return Manifest.from_json(now) != found.manifest
    except FileNotFoundError:
        return True
    except CheckpointError:
        return False


def after(moved: Moved, done: int) -> Moved:
    """Counts on from the bytes that are done already."""
    return lambda now: moved(done + now)


def _problems(
    found: Found, look: Callable[[str, FileEntry, Moved], str | None], moved: Moved
) -> Iterator[str]:
    """What `look` finds wrong, file after file."""
    assert found.manifest is not None
    done = 0
    for name, entry in found.manifest.files.items():
        problem = look(storage.join(found.url, name), entry, after(moved, done))
        if problem is not None:
            yield f"{name} {problem}"
        done += entry.size
        moved(done)


def _in_place(url: str, entry: FileEntry, moved: Moved) -> str | None:
    try:
        return None if entry_of(storage.local_path(url), moved) == entry else _DAMAGED
    except FileNotFoundError:
        return _MISSING


def _copied(url: str, path: Path, entry: FileEntry, moved: Moved) -> str | None:
    try:
        proved = storage.get_proved(url, path, lambda copied: entry_of(copied) == entry, moved)
    except FileNotFoundError:
        return _MISSING
    return None if proved else _DAMAGED
