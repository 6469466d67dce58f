# SPDX-License-Identifier: Apache-2.0
"""The drawn pictures as PNG files, which is also how a run that was stopped goes on.

`samples.json` beside them says what they were drawn with. Other formats are packed from them.
"""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ahpa_scale import storage, typed_json
from ahpa_scale.errors import UserError

RECORD = "samples.json"
#: Pictures that are read or written at the same time.
_AT_ONCE = 8
_READ_AHEAD = 64
_ODD = re.compile(r"[^\w .,()+-]")


@dataclass(frozen=True)
class Pictures:
    """Pictures in a folder or URL. Picture n is of class ``labels[n % len(labels)]``.

    Attributes:
        url: the folder.
        labels: classes, which take turns.
        names: names of all classes; empty for a model without classes.
        num: how many pictures there are in the end.
    """

    url: str
    labels: Sequence[int]
    names: Sequence[str]
    num: int
    _folders: dict[int, str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_folders", _class_folders(self.labels, self.names))

    def label(self, index: int) -> int:
        """The class of a picture."""
        return self.labels[index % len(self.labels)]

    def name(self, index: int) -> str:
        """The path of a picture in the folder."""
        folder = self._folders.get(self.label(index))
        file = f"{index:06d}.png"
        return file if folder is None else f"{folder}/{file}"

    def missing(self, rank: int, world_size: int) -> list[int]:
        """The pictures of a rank that are not there."""
        there = storage.find(self.url)
        return [n for n in range(rank, self.num, world_size) if self.name(n) not in there]

    def write(
        self, pool: ThreadPoolExecutor, index: int, picture_HW3: NDArray[np.uint8]
    ) -> Future[None]:
        """Writes a picture, whole or not at all, in another thread."""
        return pool.submit(self._write, index, picture_HW3)

    def _write(self, index: int, picture_HW3: NDArray[np.uint8]) -> None:
        content = io.BytesIO()
        Image.fromarray(picture_HW3).save(content, "PNG")
        storage.write_bytes(
            storage.join(self.url, *self.name(index).split("/")), content.getvalue()
        )

    def read(self) -> Iterator[NDArray[np.uint8]]:
        """All pictures in order, uint8 [S, S, 3]; a few are read ahead."""
        order = iter(range(self.num))
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            while chunk := list(islice(order, _READ_AHEAD)):
                yield from pool.map(self._read, chunk)

    def _read(self, index: int) -> NDArray[np.uint8]:
        content = storage.read_bytes(storage.join(self.url, *self.name(index).split("/")))
        return np.array(Image.open(io.BytesIO(content)).convert("RGB"))

    def remove(self) -> None:
        """Removes the folder with all that is in it, from a store the record last."""
        if not storage.is_remote(self.url):
            shutil.rmtree(storage.local_path(self.url), ignore_errors=True)
            return
        names = storage.find(self.url)
        for name in sorted(names, key=lambda name: name == RECORD):
            storage.remove(storage.join(self.url, *name.split("/")))


def writers() -> ThreadPoolExecutor:
    """Threads that write pictures while the next ones are drawn."""
    return ThreadPoolExecutor(_AT_ONCE)


def read_record(url: str) -> dict[str, Any] | None:
    """What the pictures in a folder were drawn with; None if nothing says so.

    Raises:
        UserError: the record is damaged.
    """
    where = storage.join(url, RECORD)
    try:
        content = storage.read_bytes(where, typed_json.LIMIT)
    except (FileNotFoundError, NotADirectoryError):
        return None
    told = typed_json.parse(content, where)
    if not isinstance(told, dict):
        raise UserError(f"{where} is no record of samples: it is not a JSON object")
    return told


def write_record(url: str, record: dict[str, Any]) -> None:
    """Writes the record of a folder."""
    storage.write_text(storage.join(url, RECORD), json.dumps(record, indent=1) + "\n")


def _class_folders(labels: Sequence[int], names: Sequence[str]) -> dict[int, str]:
    """A folder for each class that is drawn: its name, where that makes a file name of its own."""
    if not names:
        return {}
    clean = {label: _ODD.sub("_", names[label]).strip(" .")[:100] for label in labels}
    alone = len({name.casefold() for name in clean.values()}) == len(clean)
    if alone and all(clean.values()):
        return clean
    return {label: f"{label:05d}" for label in labels}
