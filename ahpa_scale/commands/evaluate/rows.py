# SPDX-License-Identifier: Apache-2.0
"""`evaluation.jsonl`: a row of strict JSON per checkpoint, all of them made with the same settings.

The file is replaced as a whole, so a reader sees only whole rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from ahpa_scale import storage, typed_json
from ahpa_scale.callbacks.metrics_file import encode_row
from ahpa_scale.checkpoint.manifest import Manifest
from ahpa_scale.errors import UserError
from ahpa_scale.run_files import EVALUATION_FILE

#: Settings in which comparable runs may differ: names, and what only the pictures for people show.
_OF_THE_RUN = ("run_name", "classes", "num_per_class")

Row = dict[str, Any]
Settings = dict[str, Any]
_Count = Annotated[int, Field(ge=0, lt=1 << 63)]


class _Settings(BaseModel):
    """Settings that a later call of the command takes over; the others are only compared."""

    model_config = {**typed_json.STRICT, "extra": "ignore"}

    run_name: str
    pictures: _Count
    bins: Annotated[int, Field(ge=1, le=10_000)]
    weights: Literal["ema", "model"]
    classes: Annotated[list[_Count], Field(max_length=10**6)]
    num_per_class: _Count
    steps: _Count
    method: str
    guidance_scale: float
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_channels: _Count | None = None
    guide: str | None = None
    last_step: float = 0.04
    time_shift: float = 1.0
    seed: _Count
    samples: _Count | None


class _Row(BaseModel):
    """The parts of a row that are read: to find its checkpoint, to compare and to draw."""

    model_config = {**typed_json.STRICT, "extra": "ignore"}

    batch: _Count
    num_images: _Count
    flow: float | None
    flow_t: list[float | None]
    fid: float | None = None
    checkpoint: str
    settings: _Settings
    settings_hash: str


class Rows:
    """The rows of a folder or URL, by batch.

    Args:
        out: the folder or URL; the file need not be there.

    Raises:
        UserError: the file exists, and this command did not write it.
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
        """Whether this very checkpoint has a row; if it was saved again since, that is another."""
        row = self._rows.get(manifest.batch)
        return row is not None and row["checkpoint"] == checkpoint_digest(manifest)

    def check(self, settings: Settings) -> None:
        """Refuse to add rows to others that can't be compared with them.

        Raises:
            UserError: it names the first setting that differs.
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

    def check_comparable(self, settings: Settings) -> None:
        """Refuse rows of another run that were measured otherwise.

        Raises:
            UserError: it names the first setting that differs.
        """
        mine, theirs = (
            {name: value for name, value in each.items() if name not in _OF_THE_RUN}
            for each in (settings, self.settings or {})
        )
        name = next((n for n in [*mine, *theirs] if mine.get(n) != theirs.get(n)), None)
        if name is not None:
            raise UserError(
                f"{self.url} was made with {name} {_shown(theirs.get(name))}, and these rows with "
                f"{_shown(mine.get(name))}: they cannot be compared"
            )

    def add(self, row: Row) -> None:
        """Add a row in its place; it replaces an earlier one of the same batch.

        Raises:
            OSError: the disk or the store refused.
        """
        # Another process may have written meanwhile; its rows stay.
        self._read()
        self._rows[row["batch"]] = row
        text = b"".join(map(encode_row, self))
        storage.write_bytes(self.url, text)

    def _read(self) -> None:
        try:
            content = storage.read_bytes(self.url, typed_json.LIMIT)
        except FileNotFoundError:
            return
        try:
            for place, row in typed_json.parse_lines(content, self.url):
                _check_row(row, place)
                if self.settings not in (None, row["settings"]):
                    raise UserError(f"{place}: settings are not those of the other rows")
                self._rows[row["batch"]] = row
        except UserError as error:
            raise UserError(
                f"{error}; the file holds other rows than those of 'ahpa-scale evaluate': choose "
                "another --out"
            ) from None


def _check_row(row: Any, place: str) -> None:
    told = typed_json.fit(_Row, row, place)
    if settings_digest(row["settings"]) != told.settings_hash:
        raise UserError(f"{place}: settings_hash is not that of the settings")
    if len(told.flow_t) != told.settings.bins:
        raise UserError(f"{place}: flow_t has not one value for each of the bins")


def settings_digest(settings: Mapping[str, Any]) -> str:
    """A hash that identifies settings."""
    return _digest(json.dumps(settings, sort_keys=True))


def checkpoint_digest(manifest: Manifest) -> str:
    """A hash that tells checkpoints of the same batch apart, wherever they are stored."""
    return _digest(manifest.to_json())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _shown(value: object) -> str:
    return "not set" if value is None else json.dumps(value)
