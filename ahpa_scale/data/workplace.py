# SPDX-License-Identifier: Apache-2.0
"""Where shards lie until their data set is whole: a hidden folder, or the store itself.

A shard is done once its note is there, which is written last. So a preparation that was killed goes
on with the shards that have none.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import safetensors.torch as safetensors
from pydantic import Field
from safetensors import SafetensorError
from torch import Tensor

from ahpa_scale import storage, typed_json
from ahpa_scale.data.codec_file import CODEC_NAME
from ahpa_scale.data.index import INDEX_NAME, Shard
from ahpa_scale.data.origin import Origin
from ahpa_scale.errors import UserError

T = TypeVar("T")

#: Begins the names of folders in which shards are written.
ROOM = ".room-"
_NOTES, _PLAN = ".preparing", "plan.json"
_SHARD = re.compile(r"shard\.\d{5,10}\.mds")
_LIMIT = 1 << 26
_STATISTICS_LIMIT = 4 << 30


@dataclass(frozen=True)
class Note:
    """What is known of a shard that is done.

    Attributes:
        shard: its entry in the index; None if none of its pictures could be read.
        rejects: name of each picture that could not be read, and why.
        firsts: pictures of which only the first frame or page was taken.
    """

    __pydantic_config__ = typed_json.STRICT

    shard: Shard | None
    rejects: dict[str, str]
    firsts: Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class _Begun:
    __pydantic_config__ = typed_json.STRICT

    origin: Origin
    layout: str


class Workplace:
    """Shards and notes of one preparation.

    Args:
        folder: local folder or URL that holds the shards.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._notes = storage.join(folder, _NOTES)

    @property
    def is_remote(self) -> bool:
        """Whether it is a store."""
        return storage.is_remote(self.folder)

    def goes_on(self, origin: Origin, layout: str, *, anew: bool) -> bool:
        """Whether the same is begun here already.

        Args:
            origin: what it is made from.
            layout: of its shards.
            anew: remove what was made from something else.

        Raises:
            UserError: something else is begun here.
        """
        where = storage.join(self._notes, _PLAN)
        if not storage.exists(where):
            return False
        content, wanted = storage.read_bytes(where, _LIMIT), _Begun(origin, layout)
        told = typed_json.parse_as(_Begun, content, where, _LIMIT)
        if told != wanted and not anew:
            advice = f"remove {self._notes if self.is_remote else self.folder}"
            origin.check(told.origin, self.folder, advice)
            raise UserError(
                f"{self.folder} was begun with {told.layout}, and this is {layout}: give the same, "
                f"or {advice}"
            )
        if told != wanted:
            self.clear()
        return told == wanted

    def begin(self, origin: Origin, layout: str) -> None:
        """Notes what is made here. A codec of something else is gone then."""
        storage.remove(storage.join(self.folder, CODEC_NAME))
        told = json.dumps(asdict(_Begun(origin, layout)))
        storage.write_text(storage.join(self._notes, _PLAN), told)

    def done(self) -> set[int]:
        """The shards that are done."""
        return {int(name[:-5]) for name in storage.find(self._notes) if name[:-5].isdecimal()}

    def put(
        self, number: int, file: Path | None, note: Note, statistics: dict[str, Tensor]
    ) -> None:
        """Takes a finished shard; the file is moved, or uploaded and removed.

        Args:
            number: of the shard.
            file: the shard; None if it holds no picture.
            note: what is known of it.
            statistics: of its pictures.

        Raises:
            OSError: the disk or the store refused.
        """
        if file is not None and note.shard is not None:
            target = storage.join(self.folder, note.shard.raw_data.basename)
            if self.is_remote:
                storage.put_file(file, target)
            else:
                os.replace(file, target)
        state = safetensors.save(statistics)
        storage.write_bytes(storage.join(self._notes, f"{number}.safetensors"), state)
        told = {**asdict(note), "shard": note.shard.model_dump() if note.shard else None}
        storage.write_text(storage.join(self._notes, f"{number}.json"), json.dumps(told))

    def note(self, number: int) -> Note:
        """The note of a shard that is done.

        Raises:
            UserError: it is damaged.
        """
        where = storage.join(self._notes, f"{number}.json")
        return typed_json.parse_as(Note, storage.read_bytes(where, _LIMIT), where, _LIMIT)

    def statistics(self, number: int) -> dict[str, Tensor]:
        """The statistics of a shard that is done.

        Raises:
            UserError: they are damaged.
        """
        where = storage.join(self._notes, f"{number}.safetensors")
        try:
            return dict(safetensors.load(storage.read_bytes(where, _STATISTICS_LIMIT)))
        except SafetensorError as error:
            raise UserError(f"{where} cannot be read ({error}): remove it and its .json") from None

    def clear(self) -> None:
        """Removes the notes. Shards without notes are written anew."""
        for name in storage.find(self._notes):
            storage.remove(storage.join(self._notes, name))

    def publish(
        self,
        out: str,
        shards: Sequence[str],
        complete: Callable[[str], T],
        *,
        replace: bool,
        marker: str,
    ) -> T:
        """Makes the data set of the shards that are done: at once by a rename, or in a store by
        the marker.

        Args:
            out: the data set's folder, or the store.
            shards: names of its shards.
            complete: writes what else belongs to it into the folder that it gets, the marker last.
            replace: whether an old data set gives way.
            marker: the file without which it is no data set.
        """
        if self.is_remote:
            result = complete(out)
            # Also of a larger set that was here before.
            for name in storage.find(out):
                if _SHARD.fullmatch(name) and name not in shards:
                    storage.remove(storage.join(out, name))
            self.clear()
            return result
        with storage.atomic_folder(out, replace=replace, marker=marker) as content:
            for name in shards:
                _link(Path(self.folder, name), content / name)
            result = complete(str(content))
        shutil.rmtree(self.folder, ignore_errors=True)
        return result


def write_index(folder: str, notes: Sequence[Note]) -> None:
    """Writes the index of shards, in the order of their notes."""
    shards = [note.shard.model_dump() for note in notes if note.shard is not None]
    index = json.dumps({"version": 2, "shards": shards}, sort_keys=True)
    storage.write_text(storage.join(folder, INDEX_NAME), index)


@contextmanager
def working_for(out: str) -> Iterator[Workplace]:
    """The workplace of a data set or a part of one. Only one command at a time has it. It stays
    after an error, for the next try, if any shard is done.

    Raises:
        UserError: another process prepares the same.
    """
    if storage.is_remote(out):
        yield Workplace(out)
        return
    folder = storage.kept_room(out)
    (folder / _NOTES).mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / _NOTES / "running", os.O_CREAT | os.O_RDWR)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is preparing {out}") from None
        for room in folder.glob(f"{ROOM}*"):
            shutil.rmtree(room, ignore_errors=True)
        workplace = Workplace(str(folder))
        try:
            yield workplace
        except BaseException:
            if not workplace.done():
                shutil.rmtree(folder, ignore_errors=True)
            raise
    finally:
        os.close(descriptor)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)
