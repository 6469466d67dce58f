# SPDX-License-Identifier: Apache-2.0
"""Path options of the commands: each declares what it takes, and a slip is refused before the
command begins.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import typer

from ahpa_scale import paths
from ahpa_scale.errors import UserError

Callback = Callable[[typer.CallbackParam, str | None], str | None]


def _read_by(read: Callable[[str], str]) -> Callback:
    """A callback of typer that puts in place what `ahpa_scale.paths` makes of the text."""

    def callback(param: typer.CallbackParam, value: str | None) -> str | None:
        try:
            return None if value is None else read(value)
        except UserError as error:
            option = param.opts[0]
            named = option if option.startswith("-") else option.upper()
            raise UserError(f"{named}: {error}") from None

    return callback


#: For `callback=` of an option or argument, by what it takes.
LOCAL = _read_by(paths.local)
ANY = _read_by(paths.resolve)
DATA = _read_by(paths.data)
VAE = _read_by(paths.vae)


def local_arguments(given: Namespace) -> None:
    """As LOCAL, for what `argparse` has read: paths, and lists of paths, are replaced in place.

    Raises:
        UserError: one that is not of this machine; the line names the option.
    """
    for name, value in list(vars(given).items()):
        try:
            if isinstance(value, Path):
                setattr(given, name, Path(paths.local(value)))
            elif isinstance(value, list) and value and isinstance(value[0], Path):
                setattr(given, name, [Path(paths.local(each)) for each in value])
        except UserError as error:
            raise UserError(f"--{name.replace('_', '-')}: {error}") from None
