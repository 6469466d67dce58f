# SPDX-License-Identifier: Apache-2.0
"""Finds the folder that a user named, or the nearest one to what was meant."""

from __future__ import annotations

import os
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from ahpa_scale import storage
from ahpa_scale.data.settings import DEMO
from ahpa_scale.errors import UserError


def existing_folder(path: str) -> Path:
    """The local folder of this name.

    Raises:
        UserError: there is none, or it can't be read; the message names the nearest.
    """
    folder = storage.local_path(path)
    if folder.is_dir() and os.access(folder, os.R_OK | os.X_OK):
        return folder
    if folder.exists():
        raise UserError(f"{folder} is not a folder that can be read")
    near = _nearest(folder)
    raise UserError(f"no folder {folder}" + (f": did you mean {near}?" if near else ""))


def existing_file(path: str) -> Path:
    """The local file of this name.

    Raises:
        UserError: there is none; the message names the nearest.
    """
    file = storage.local_path(path)
    if file.is_file():
        return file
    try:
        names = [each.name for each in file.parent.iterdir()]
    except OSError:
        names = []
    match = get_close_matches(file.name, names, n=1)
    near = f": did you mean {file.parent / match[0]}?" if match else ""
    raise UserError(f"no file {file}{near}")


def _nearest(folder: Path) -> str | None:
    if get_close_matches(str(folder), [DEMO], cutoff=0.7):
        return f"'{DEMO}'"
    try:
        names: Sequence[str] = [p.name for p in folder.parent.iterdir() if p.is_dir()]
    except OSError:
        return None
    match = get_close_matches(folder.name, names, n=1)
    return str(folder.parent / match[0]) if match else None
