# SPDX-License-Identifier: Apache-2.0
"""Reads files of JSON rows that a run may be writing at this moment, or that may be damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ahpa_scale import typed_json
from ahpa_scale.errors import UserError

#: Most bytes of a row; a longer line is no row.
_LONGEST = 4 << 20
#: No number of a run is as large.
_LARGEST = 1e300

Row = dict[str, Any]


class Faults:
    """What of a run could not be read, in words for people.

    Attributes:
        lines: one for each file with something wrong.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._skipped: dict[str, tuple[int, str]] = {}

    def add(self, line: str) -> None:
        """Notes something that is wrong."""
        self.lines.append(line)

    def skip(self, file: str, why: str) -> None:
        """Counts a row that was left out, and keeps the first reason of its file."""
        count, first = self._skipped.get(file, (0, why))
        self._skipped[file] = (count + 1, first)

    def told(self) -> list[str]:
        """All lines, those of left-out rows included."""
        skipped = [
            f"{file}: {_rows(count)} left out, because damaged ({first})"
            for file, (count, first) in self._skipped.items()
        ]
        return [*self.lines, *skipped]


def read_rows(
    path: Path, file: str, faults: Faults, moved: Callable[[int], None] | None = None
) -> Iterator[Row]:
    """The rows of a local file. Lines that are none are left out and counted; a last line without
    an end is being written, or was torn by a kill, and is left out as well.

    Args:
        path: the file.
        file: its name for people.
        faults: takes what was left out.
        moved: called with the number of bytes read so far.
    """
    done = 0
    with path.open("rb") as source:
        for number, line in enumerate(iter(partial(source.readline, _LONGEST), b""), start=1):
            done += len(line)
            if moved is not None:
                moved(done)
            place = f"line {number}"
            if not line.endswith(b"\n"):
                rest = source.readline(_LONGEST)
                if not rest:
                    faults.add(f"{file}: its last line is only half written and is left out")
                    return
                while rest and not rest.endswith(b"\n"):
                    rest = source.readline(_LONGEST)
                faults.skip(file, f"{place} is longer than {_LONGEST} bytes")
                done = source.tell()
                continue
            try:
                row = typed_json.parse(line, place)
            except UserError as error:
                faults.skip(file, str(error))
                continue
            if isinstance(row, dict):
                yield row
            else:
                faults.skip(file, f"{place} is no row")


def number_of(row: Row, key: str) -> float | None:
    """A row's number of this name; None if it is missing or something else."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < _LARGEST else None


def count_of(row: Row, key: str) -> int | None:
    """A row's count of this name: a whole number from 0; None if it is missing or something
    else.
    """
    value = row.get(key)
    return value if type(value) is int and 0 <= value < 1 << 53 else None


def text_of(row: Row, key: str, most: int = 500) -> str:
    """A row's text of this name, cut; empty if it is missing or something else."""
    value = row.get(key)
    return value[:most] if isinstance(value, str) else ""


def _rows(count: int) -> str:
    return "1 row is" if count == 1 else f"{count:,} rows are"
