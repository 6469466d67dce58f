# SPDX-License-Identifier: Apache-2.0
"""Options that several commands have. A path option declares which paths it takes, and a slip is
refused before the command begins.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ahpa_scale import paths
from ahpa_scale.errors import UserError
from ahpa_scale.sampling.settings import SamplerOptions

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
SOURCE = _read_by(paths.source)
VAE = _read_by(paths.vae)


Exif = Annotated[
    Optional[bool],  # noqa: UP045
    typer.Option(
        "--exif/--no-exif",
        help="Turn pictures as EXIF says, and colours of ICC profiles to sRGB; ADM does neither.",
        show_default="exif",
    ),
]
LeastSide = Annotated[
    Number, typer.Option(help="Reject pictures whose shorter side has fewer pixels.")
]
ClassesFrom = Annotated[
    Text,
    typer.Option(
        help="Prepared data set, folder or URL, whose classes these are, in its order.",
        callback=ANY,
    ),
]
ClassDepth = Annotated[
    Number,
    typer.Option(
        help="Whose name is the class: the first folder's (1), the second's (2); 0: one class.",
        show_default="metadata.csv or .jsonl, or else 1",
    ),
]
ImageColumn = Annotated[
    Text, typer.Option(help="Column or ending of the pictures.", show_default="found")
]
LabelColumn = Annotated[
    Text, typer.Option(help="Column, ending or JSON key of the labels.", show_default="found")
]

Preset = Annotated[
    Text,
    typer.Option(
        help="Settings of the sampler by name, as in 'fast': docs/sampling.md lists them.",
        show_default="the run's own",
    ),
]
Method = Annotated[
    Text,
    typer.Option(
        help="euler, heun, sde, dopri5 (steps for each sample) or dopri5_batch (as published).",
        show_default="the run's",
    ),
]
Steps = Annotated[Number, typer.Option(help="Steps of the sampler.", show_default="the run's")]
GuidanceScale = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(help="Classifier-free guidance; 1: none.", show_default="the run's"),
]
GuidanceInterval = Annotated[
    Optional[tuple[float, float]],  # noqa: UP045
    typer.Option(
        help="Guide at noise levels between these two only, as in 0 0.7.", show_default="the run's"
    ),
]
TimeShift = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(
        help="Above 1: smaller steps at high noise (euler, heun).", show_default="the run's"
    ),
]
Seed = Annotated[Number, typer.Option(help="Seed of the noise.", show_default="the run's")]

Guide = Annotated[
    Text,
    typer.Option(
        help="A weaker model's checkpoint, for autoguidance in place of the null class.",
        callback=ANY,
        show_default="none",
    ),
]


def sampler_options(given: dict[str, Any]) -> SamplerOptions:
    """Takes a command's options of the sampler out of all that it was given.

    Raises:
        UserError: a value that is never valid.
    """
    return SamplerOptions(**{field.name: given.pop(field.name) for field in fields(SamplerOptions)})


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
