# SPDX-License-Identifier: Apache-2.0
"""`evaluation.jsonl`: a row of strict JSON per checkpoint, all of them made with the same settings.

The file is replaced as a whole, so a reader sees only whole rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from ahpa_scale import storage
from ahpa_scale.callbacks.common import EVALUATION_FILE
from ahpa_scale.callbacks.metrics_file import encode_row
from ahpa_scale.checkpoint.manifest import Manifest
from ahpa_scale.errors import UserError

Row = dict[str, Any]
Settings = dict[str, Any]


class Rows:
    """The rows of a folder or URL, by batch.

    Args:
        out: the folder or URL; the file need not be there.

    Raises:
        UserError: the file is there, and is none of this command's.
        OSError: the store can't be reached.
    """

    def __init__(self, out: str) -> None:
        self.url = storage.join(out, EVALUATION_FILE)
        self._rows: dict[int, Row] = {}
        self._read()

    def __iter__(self) -> Iterator[Row]:
        """Oldest first."""
        return iter([self._rows[batch] for batch in sorted(self._rows)])

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def settings(self) -> Settings | None:
        """What the rows were made with; None without rows."""
        return next((row["settings"] for row in self), None)

    def holds(self, manifest: Manifest) -> bool:
        """Whether there is a row of this very checkpoint: one that was saved anew since is not."""
        row = self._rows.get(manifest.batch)
        return row is not None and row["checkpoint"] == checkpoint_digest(manifest)

    def check(self, settings: Settings) -> None:
        """Refuse to put rows beside others that can't be compared with them.

        Raises:
            UserError: naming the first setting that differs.
        """
        before = self.settings
        if before is None or before == settings:
            return
        names = [*settings, *(name for name in before if name not in settings)]
        name = next(name for name in names if before.get(name) != settings.get(name))
        raise UserError(
            f"{self.url} was made with {name} {_shown(before.get(name))}, and now it is "
            f"{_shown(settings.get(name))}: choose another --out, or the same settings"
        )

    def add(self, row: Row) -> None:
        """Put a row in its place, or in that of an earlier one of the same batch.

        Raises:
            OSError: the disk or the store refused.
        """
        # Another process may have come between; what it has written stays.
        self._read()
        self._rows[row["batch"]] = row
        text = b"".join(encode_row(one) for one in self)
        storage.write_bytes(self.url, text)

    def _read(self) -> None:
        try:
            content = storage.read_bytes(self.url)
        except FileNotFoundError:
            return
        try:
            rows = [json.loads(line) for line in content.splitlines()]
            self._rows |= {int(row["batch"]): row for row in rows if row["checkpoint"]}
            told = [settings_digest(row["settings"]) == row["settings_hash"] for row in rows]
        except (ValueError, KeyError, TypeError):
            told = [False]
        if not all(told):
            raise UserError(
                f"{self.url} holds other rows than those of 'ahpa-scale evaluate': choose another "
                "--out"
            )


def settings_digest(settings: Mapping[str, Any]) -> str:
    """Tells settings apart."""
    return _digest(json.dumps(settings, sort_keys=True))


def checkpoint_digest(manifest: Manifest) -> str:
    """Tells a checkpoint from another of the same batch, wherever it lies."""
    return _digest(manifest.to_json())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _shown(value: object) -> str:
    return "not set" if value is None else json.dumps(value)
