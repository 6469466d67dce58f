# SPDX-License-Identifier: Apache-2.0
"""Which files below a folder are pictures; a class is a sub-folder."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path

from ahpa_scale.data.pictures.decode import SUFFIXES
from ahpa_scale.data.pictures.files import shown
from ahpa_scale.errors import UserError

KINDS = ", ".join(suffix[1:] for suffix in SUFFIXES)
#: Names used by file servers, archivers and desktops: thumbnails and wastebaskets.
_NOT_OURS = {"@eadir", "__macosx", "#recycle", "$recycle.bin", "lost+found", "thumbs.db"}
_SHOWN_KINDS = 8


class LeftOut(Counter[str]):
    """How many files of each kind were not looked at."""

    def told(self) -> str | None:
        """The most common kinds, for the user; None if there were none."""
        most = self.most_common(_SHOWN_KINDS)
        others = self.total() - sum(count for _, count in most)
        words = [f"{count} {shown(kind)}" for kind, count in most]
        words += [f"{others} others"] * bool(others)
        return ", ".join(words) or None


class Listing:
    """The pictures of a folder, found by their names: nothing is opened.

    A folder that links lead to is read once, so links may loop. Hidden files and editors' copies
    are left out. A file that only looks like a picture, such as a broken link, is listed, and its
    reader reports it.

    Args:
        root: the folder.
        depth: how deep the folders are whose names are the classes: 1 for sub-folders. Pictures
            beside them are left out. 0: there are no classes.

    Raises:
        UserError: a folder cannot be listed, or a class is missing, empty or there twice.
    """

    def __init__(self, root: Path, *, depth: int) -> None:
        self.root = root
        self._left_out = LeftOut()
        folders = [str(root)]
        for _ in range(depth):
            folders = self._class_folders(folders)
        named = [os.path.basename(folder) if depth else "" for folder in folders]
        self.classes = tuple(sorted(set(named)))
        #: Per class, paths of its pictures below the root, sorted.
        self.names: list[list[str]] = [[] for _ in self.classes]
        for name, found in zip(named, self._find(folders), strict=True):
            self.names[self.classes.index(name)] += found
        for label, paths in enumerate(self.names):
            paths.sort()
            if depth and not paths:
                folder = folders[named.index(self.classes[label])]
                raise UserError(f"class folder {shown(folder)} has no pictures ({KINDS})")

    @property
    def left_out(self) -> str | None:
        """How many files of each kind were not looked at; None if there were none."""
        return self._left_out.told()

    def size_of(self, name: str) -> int:
        """Bytes of a picture; -1 if there is nothing to read."""
        try:
            return (self.root / name).stat().st_size
        except OSError:
            return -1

    def _class_folders(self, parents: Sequence[str]) -> list[str]:
        folders: dict[str, str] = {}
        for entry in (entry for parent in parents for entry in self._entries(parent)):
            target = os.path.realpath(entry.path)
            if not _is_folder(entry):
                if _is_broken(entry) and not suffix_of(entry.name):
                    raise UserError(
                        f"{shown(entry.path)} may be a class, but links to nothing: mend it"
                    )
                self._leave_out(f"{suffix_of(entry.name)} beside the class folders")
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
                f"{shown(parents[0])} has no sub-folders: put the pictures of each class into its "
                "own"
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
                        self._leave_out(suffix_of(entry.name) or "without a suffix")
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
        looked_at = [entry for entry in entries if not is_hidden(entry.name)]
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
    suffix = suffix_of(entry.name)
    return suffix in SUFFIXES or (not suffix and _is_broken(entry))


def is_hidden(name: str) -> bool:
    """Whether desktops don't show a file or folder of this name, or make it themselves."""
    return name.startswith(".") or name.lower() in _NOT_OURS


def _is_broken(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)


def _is_unicode(name: str) -> bool:
    # Python decodes bytes of a name that are not UTF-8 to lone surrogates.
    return not any("\ud800" <= each <= "\udfff" for each in name)


def suffix_of(name: str) -> str:
    """The ending of a file's name, in lower case, with its dot."""
    return os.path.splitext(name)[1].lower()
