# SPDX-License-Identifier: Apache-2.0
"""Options that several commands have. A path option declares which paths it takes, and a slip is
refused before the command begins.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Optional

import typer

from ahpa_scale import paths
from ahpa_scale.errors import UserError

#: typer can't read `int | None` on Python 3.10.
Number = Optional[int]  # noqa: UP045
Text = Optional[str]  # noqa: UP045

Device = Annotated[str, typer.Option(help="Torch device, such as cpu or cuda:0.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run made.")]
Progress = Annotated[bool, typer.Option(help="Show rate and time left of long work.")]
Limit = Annotated[Number, typer.Option(help="At most this many pictures.")]

Callback = Callable[[typer.CallbackParam, str | None], str | None]
ListCallback = Callable[[typer.CallbackParam, list[str]], list[str]]


def _read_by(read: Callable[[str], str]) -> Callback:
    """A typer callback that replaces the text by what a function of `ahpa_scale.paths` returns."""

    def callback(param: typer.CallbackParam, value: str | None) -> str | None:
        try:
            return None if value is None else read(value)
        except UserError as error:
            option = param.opts[0]
            named = option if option.startswith("-") else option.upper()
            raise UserError(f"{named}: {error}") from None

    return callback


def _each(read: Callable[[str], str]) -> ListCallback:
    """As `_read_by`, for an argument that is given several times."""
    one = _read_by(read)

    def callback(param: typer.CallbackParam, values: list[str]) -> list[str]:
        return [text for text in (one(param, value) for value in values) if text is not None]

    return callback


#: For `callback=` of an option or argument, by the paths that it takes.
LOCAL = _read_by(paths.local)
ANY = _read_by(paths.resolve)
ANY_OF_SEVERAL = _each(paths.resolve)
DATA = _read_by(paths.data)
VAE = _read_by(paths.vae)


def local_arguments(given: Namespace) -> None:
    """Like LOCAL, for arguments that `argparse` has read: replaces paths and lists of paths.

    Raises:
        UserError: a path is not of this machine; the message names the option.
    """
    for name, value in list(vars(given).items()):
        try:
            if isinstance(value, Path):
                setattr(given, name, Path(paths.local(value)))
            elif isinstance(value, list) and value and isinstance(value[0], Path):
                setattr(given, name, [Path(paths.local(each)) for each in value])
        except UserError as error:
            raise UserError(f"--{name.replace('_', '-')}: {error}") from None


def remark(text: str) -> None:
    """Says on stderr what a command left out."""
    typer.echo(text, err=True)
