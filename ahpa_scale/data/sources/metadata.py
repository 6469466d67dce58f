# SPDX-License-Identifier: Apache-2.0
"""`metadata.csv` and `metadata.jsonl`: the labels of a folder's pictures, as in Hugging Face's
imagefolder.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from ahpa_scale import storage, typed_json
from ahpa_scale.data.sources.columns import chosen_label
from ahpa_scale.errors import UserError

NAMES = ("metadata.jsonl", "metadata.csv")
FILE_COLUMN = "file_name"
#: Most bytes of the file: millions of lines.
_LIMIT = 1 << 30


def read_metadata(where: str, label_column: str | None) -> dict[str, str | int]:
    """The label of each picture by its path below the folder, in the file's order.

    Args:
        where: path or URL of the file.
        label_column: the labels' column; None takes the one of a usual name, or the only one.

    Raises:
        UserError: the file is damaged, lacks a column, names a picture twice, or names one outside
            of the folder.
    """
    content = storage.read_bytes(where, _LIMIT)
    lines = _of_csv(content, where) if where.endswith(".csv") else _of_jsonl(content, where)
    labels: dict[str, str | int] = {}
    column = label_column
    for place, line in lines:
        if FILE_COLUMN not in line:
            raise UserError(f"{place} has no {FILE_COLUMN}: it names the picture")
        if not labels:
            column = chosen_label([n for n in line if n != FILE_COLUMN], label_column, where)
        name, label = line[FILE_COLUMN], line.get(str(column))
        if not isinstance(name, str) or not _is_inside(name):
            raise UserError(f"{place}: {name!r:.200} is no path below the folder")
        if isinstance(label, bool) or not isinstance(label, str | int) or label == "":
            raise UserError(f"{place} has no label: {column} is {label!r:.80}")
        name = str(PurePosixPath(name))
        if name in labels:
            raise UserError(f"{place} names {name!r:.200} again")
        labels[name] = label
    if not labels:
        raise UserError(f"{where} names no pictures")
    return labels


def _of_jsonl(content: bytes, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for place, value in typed_json.parse_lines(content, where):
        if not isinstance(value, dict):
            raise UserError(f"{place} is no JSON object")
        yield place, value


def _of_csv(content: bytes, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        text = content.decode("utf-8-sig")
        rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        header: Sequence[str] = next(rows, [])
        for row in rows:
            if not row:
                continue
            place = f"{where}, line {rows.line_num}"
            if len(row) != len(header):
                raise UserError(f"{place} has {len(row)} fields, and the first has {len(header)}")
            yield place, dict(zip(header, row, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{where} is no CSV of UTF-8 text: {error}") from None


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts
