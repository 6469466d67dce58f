# SPDX-License-Identifier: Apache-2.0
"""Which files below a folder are pictures; a class is a sub-folder."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ahpa_scale.data.pictures.decode import SUFFIXES
from ahpa_scale.data.pictures.files import shown
from ahpa_scale.errors import UserError

KINDS = ", ".join(suffix[1:] for suffix in SUFFIXES)
#: Names used by file servers, archivers and desktops: thumbnails and wastebaskets.
_NOT_OURS = {"@eadir", "__macosx", "#recycle", "$recycle.bin", "lost+found", "thumbs.db"}
_SHOWN_KINDS = 8


class Listing:
    """The pictures of a folder, found by their names: nothing is opened.

    A folder that links lead to is read once, so links may loop. Hidden files and editors' copies
    are left out. A file that only looks like a picture, such as a broken link, is listed, and its
    reader reports it.

    Args:
        root: the folder.
        classes: whether its sub-folders are classes; if so, pictures beside them are left out.

    Raises:
        UserError: a folder cannot be listed, or a class is missing, empty or there twice.
    """

    def __init__(self, root: Path, *, classes: bool) -> None:
        self.root = root
        self._left_out: Counter[str] = Counter()
        folders = self._class_folders() if classes else [str(root)]
        self.classes = tuple(os.path.relpath(folder, root) for folder in folders)
        #: Per class, paths of its pictures below the root, sorted.
        self.names = self._find(folders)
        for folder, names in zip(folders, self.names, strict=True):
            if classes and not names:
                raise UserError(f"class folder {shown(folder)} has no pictures ({KINDS})")

    @property
    def left_out(self) -> str | None:
        """How many files of each kind were not looked at; None if there were none."""
        most = self._left_out.most_common(_SHOWN_KINDS)
        others = self._left_out.total() - sum(count for _, count in most)
        words = [f"{count} {shown(kind)}" for kind, count in most]
        words += [f"{others} others"] * bool(others)
        return ", ".join(words) or None

    def digests(self, threads: int) -> dict[str, str]:
        """Per class, how many pictures it has and a digest of their names and sizes."""
        digests = {}
        with ThreadPoolExecutor(threads) as pool:
            for label, names in zip(self.classes, self.names, strict=True):
                told = hashlib.sha256()
                for name, size in zip(names, pool.map(self.size_of, names), strict=True):
                    told.update(os.fsencode(name) + b"\0%d\0" % size)
                digests[label] = f"{len(names)} pictures, digest {told.hexdigest()[:8]}"
        return digests

    def size_of(self, name: str) -> int:
        """Bytes of a picture; -1 if there is nothing to read."""
        try:
            return (self.root / name).stat().st_size
        except OSError:
            return -1

    def _class_folders(self) -> list[str]:
        folders: dict[str, str] = {}
        for entry in self._entries(str(self.root)):
            target = os.path.realpath(entry.path)
            if not _is_folder(entry):
                if _is_broken(entry) and not _suffix(entry.name):
                    raise UserError(
                        f"{shown(entry.path)} may be a class, but links to nothing: mend it"
                    )
                self._leave_out(f"{_suffix(entry.name)} beside the class folders")
            elif Path(os.path.realpath(self.root)).is_relative_to(target):
                self._leave_out("links to folders that are read already")
            elif target in folders:
                raise UserError(
                    f"class folders {shown(folders[target])} and {shown(entry.path)} are one: "
                    "remove a link"
                )
            elif not _is_unicode(entry.name):
                raise UserError(
                    f"class folder {shown(entry.path)} is not named in UTF-8: rename it"
                )
            else:
                folders[target] = entry.path
        if not folders:
            raise UserError(
                f"{self.root} has no sub-folders: put the pictures of each class into its own"
            )
        return list(folders.values())

    def _find(self, folders: Sequence[str]) -> list[list[str]]:
        """Paths of each folder's pictures, below the root.

        Real folders are read before links, so that a picture keeps the class that its own folder
        is in.
        """
        pictures: list[list[str]] = [[] for _ in folders]
        here = deque(
            (label, folder, os.path.realpath(folder)) for label, folder in enumerate(folders)
        )
        seen = {os.path.realpath(self.root), *(target for *_, target in here)}
        links: deque[tuple[int, str, str]] = deque()
        while here or links:
            if not here:
                label, folder, target = links.popleft()
                if target in seen:
                    self._leave_out("links to folders that are read already")
                    continue
                seen.add(target)
                here.append((label, folder, target))
            label, folder, target = here.popleft()
            for entry in self._entries(folder):
                if not _is_folder(entry):
                    if _is_picture(entry):
                        pictures[label].append(os.path.relpath(entry.path, self.root))
                    else:
                        self._leave_out(_suffix(entry.name) or "without a suffix")
                elif entry.is_symlink():
                    links.append((label, entry.path, os.path.realpath(entry.path)))
                elif (place := os.path.join(target, entry.name)) not in seen:
                    seen.add(place)
                    here.append((label, entry.path, place))
        return [sorted(paths) for paths in pictures]

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        """The entries of a folder, sorted, without hidden ones."""
        try:
            with os.scandir(folder) as there:
                entries = sorted(there, key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"cannot list {shown(folder)}: {error.strerror}") from error
        looked_at = [entry for entry in entries if not _is_hidden(entry.name)]
        self._leave_out("hidden", len(entries) - len(looked_at))
        return looked_at

    def _leave_out(self, kind: str, count: int = 1) -> None:
        if count:
            self._left_out[kind] += count


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # `entry.is_dir` raises if links loop.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _is_picture(entry: os.DirEntry[str]) -> bool:
    """Judged by name; a broken link without a suffix may have led to a folder of pictures."""
    suffix = _suffix(entry.name)
    return suffix in SUFFIXES or (not suffix and _is_broken(entry))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _NOT_OURS


def _is_broken(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)


def _is_unicode(name: str) -> bool:
    # Python decodes bytes of a name that are not UTF-8 to lone surrogates.
    return not any("\ud800" <= each <= "\udfff" for each in name)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()
