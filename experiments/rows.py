# SPDX-License-Identifier: Apache-2.0
"""The results' file: one JSON object a line, appended by many processes, never torn or doubled."""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ahpa_scale import storage
from ahpa_scale.errors import UserError

#: The fields that identify a row of each kind.
KEYS = {
    "run": ("dataset", "variant", "seed", "step"),
    "map": ("dataset", "variant", "seed", "step"),
    "floor": ("dataset", "name"),
}
DIGITS = 6

Row = dict[str, Any]


def key_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The row's key; no two rows of a file share it."""
    return (row["kind"], *(row[name] for name in KEYS[row["kind"]]))


def rounded(value: Any) -> Any:
    """Floats with 6 significant digits at any depth; None for a float that is not finite."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value


class ResultFile:
    """A study's rows.

    Args:
        path: the ``.jsonl`` file; it and its folder need not exist.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def read(self) -> list[Row]:
        """All whole rows, in file order.

        Raises:
            UserError: a line that is no row.
        """
        if not self.path.exists():
            return []
        rows = []
        for number, line in enumerate(self.path.read_bytes().split(b"\n"), start=1):
            if not line:
                continue
            try:
                row = json.loads(line)
                key_of(row)
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{self.path}:{number}: this is no row of a study") from None
            rows.append(row)
        return rows

    def append(self, row: Row) -> bool:
        """Add a row, unless one with its key is there; returns whether it was added.

        Raises:
            UserError: a line of the file is no row.
        """
        row = rounded(row)
        line = json.dumps(row, sort_keys=True, allow_nan=False).encode() + b"\n"
        with self.locked() as file:
            _drop_torn_line(file)
            if any(key_of(stored) == key_of(row) for stored in self.read()):
                return False
            # One write at the end of the file: after a kill the line is whole, or torn and dropped.
            os.write(file, line)
            os.fsync(file)
        return True

    def remove(self, unwanted: set[tuple[Any, ...]]) -> int:
        """Remove the rows with these keys atomically; returns how many there were."""
        with self.locked():
            rows = self.read()
            kept = [row for row in rows if key_of(row) not in unwanted]
            if len(kept) < len(rows):
                text = "".join(json.dumps(row, sort_keys=True) + "\n" for row in kept)
                storage.write_text(self.path, text)
        return len(rows) - len(kept)

    @contextmanager
    def locked(self) -> Iterator[int]:
        """The open file, locked; if it was replaced meanwhile, the new file at the path."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                if self.path.exists() and os.path.samestat(os.fstat(file), os.stat(self.path)):
                    yield file
                    return
            finally:
                os.close(file)


def _drop_torn_line(file: int) -> None:
    size = os.fstat(file).st_size
    content = os.pread(file, size, 0)
    if content and not content.endswith(b"\n"):
        os.ftruncate(file, content.rfind(b"\n") + 1)
