# SPDX-License-Identifier: Apache-2.0
"""Pickles that run code when Python loads them, in every way that the opcodes offer.

Each one creates a file, whose path is its argument.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch


class Evil:
    """An object whose pickle calls something."""

    def __init__(self, called: Callable[..., Any], *arguments: Any) -> None:
        self.call = (called, arguments)

    def __reduce__(self):
        return self.call


class Willing:
    """A class that runs its state: for BUILD, NEWOBJ, INST and OBJ."""

    def __init__(self, path: str = "") -> None:
        if path:
            Path(path).touch()

    def __new__(cls, path: str = ""):
        if path:
            Path(path).touch()
        return super().__new__(cls)

    def __setstate__(self, path: str) -> None:
        Path(path).touch()


copyreg.add_extension(__name__, "Willing", 241)


def planted(mark: Path) -> Iterator[tuple[str, bytes]]:
    """Name and pickle of each way; loading any of them with Python's `pickle` creates `mark`."""
    import os
    import subprocess

    code = f"open({str(mark)!r}, 'w').close()"
    calls: dict[str, Evil] = {
        "os.system": Evil(os.system, f"touch {mark}"),
        "builtins.eval": Evil(eval, f"({code},)"),
        "builtins.exec": Evil(exec, code),
        "subprocess.run": Evil(subprocess.run, ["touch", str(mark)]),
        "pathlib": Evil(Path.touch, mark),
    }
    for name, evil in calls.items():
        for protocol in range(6):
            yield f"{name}, protocol {protocol}", pickle.dumps({"w": [evil]}, protocol)
    path = pickle.dumps(str(mark), 2)[2:-1]  # without PROTO and STOP
    there = f"{__name__}\nWilling\n".encode()
    short = b"\x8c" + bytes([len(__name__)]) + __name__.encode() + b"\x8c\x07Willing"
    yield "INST", b"(" + path + b"i" + there + b"."
    yield "OBJ", b"(c" + there + path + b"o."
    yield "NEWOBJ", b"\x80\x02c" + there + path + b"\x85\x81."
    yield "NEWOBJ_EX", b"\x80\x04c" + there + path + b"\x85}\x92."
    yield "STACK_GLOBAL", b"\x80\x04" + short + b"\x93" + path + b"\x85R."
    yield "BUILD", b"c" + there + b")R" + path + b"b."
    yield "EXT1", b"\x80\x02\x82\xf1" + path + b"\x85R."
    yield "EXT2", b"\x80\x02\x83\xf1\x00" + path + b"\x85R."
    yield "EXT4", b"\x80\x02\x84" + struct.pack("<i", 241) + path + b"\x85R."
    yield "in a key", b"(dc" + there + path + b"\x85RI1\ns."
    yield "dropped again", b"c" + there + path + b"\x85R0N."


def saved(content: object, path: Path) -> Path:
    """A file of `torch.save`."""
    torch.save(content, path)
    return path


def with_pickle(file: Path, content: bytes, out: Path) -> Path:
    """A copy of a file of `torch.save` that holds another pickle."""
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            mine = entry.filename.endswith("/data.pkl")
            new.writestr(entry.filename, content if mine else old.read(entry))
    return out


def pickle_of(file: Path) -> bytes:
    """The pickle in a file of `torch.save`."""
    with zipfile.ZipFile(file) as archive:
        (name,) = (one for one in archive.namelist() if one.endswith("/data.pkl"))
        return archive.read(name)


def zipped(entries: dict[str, bytes], **options: Any) -> bytes:
    """A zip archive."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", **options) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return written.getvalue()
