# SPDX-License-Identifier: Apache-2.0
"""What the sections share: the strict base class, and the types of times, sizes, names and
lists.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ahpa_scale import paths
from ahpa_scale.config.errors import nearest
from ahpa_scale.errors import UserError

ItemT = TypeVar("ItemT")

TIME_UNITS = {"ep": "epochs", "ba": "batches", "sp": "samples", "dur": "share of the run"}
_TIME = re.compile(r"(\d+)(ep|ba|sp)|(\d+(?:\.\d*)?|\.\d+)(dur)", re.ASCII)
_SIZE = re.compile(r"[1-9]\d*(b|kb|mb|gb|tb|pb)", re.ASCII)
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


class Section(BaseModel):
    """Base of every section: no unknown keys, no silent conversions, no nan or inf, read-only."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


def parse_time(text: str) -> tuple[float, str]:
    """Split a Composer time string into value and unit.

    Args:
        text: a whole number and ``ep``, ``ba`` or ``sp``, or a share of the run such as ``0.5dur``.

    Returns:
        The value and one of ``ep``, ``ba``, ``sp``, ``dur``.

    Raises:
        UserError: not such a string.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise UserError(f"{text!r} is not a time: write a number and a unit, as in '1000ba'")
    whole, unit, share, dur = match.groups()
    return (float(whole), unit) if unit else (float(share), dur)


def parse_duration(text: str) -> float:
    """Seconds of a stretch of wall-clock time such as ``23h30m``, ``1d12h`` or ``84600s``.

    Raises:
        UserError: not such a string, or no time at all.
    """
    match = _DURATION.fullmatch(text)
    numbers = [int(number or 0) for number in match.groups()] if match else []
    seconds = sum(n * unit for n, unit in zip(numbers, (86400, 3600, 60, 1), strict=False))
    if seconds == 0:
        raise UserError(
            f"{text!r} is not a stretch of time above 0: write days, hours, minutes or seconds, as "
            "in '23h30m' or '84600s'"
        )
    return float(seconds)


def _duration(text: str) -> str:
    parse_duration(text)
    return text


def _time(units: tuple[str, ...], *, zero: bool) -> Callable[[str], str]:
    known = ", ".join(f"{unit} ({TIME_UNITS[unit]})" for unit in units)

    def check(text: str) -> str:
        match = re.fullmatch(r"\s*([\d._]*)\s*(.*?)\s*", text)
        value, unit = match.groups() if match else ("", "")
        if unit not in units:
            close = nearest(unit.lower(), units, cutoff=0.3)
            hint = f", perhaps '{value}{close}'" if value and close else ""
            raise UserError(f"{text!r} needs one of the units {known}{hint}")
        number, unit = parse_time(text)
        if number == 0 and not zero:
            raise UserError(f"{text!r} must be above 0")
        if unit == "dur" and number > 1:
            raise UserError(f"{text!r} is a share of the run and must not exceed '1dur'")
        return text

    return check


def _size(text: str) -> str:
    if _SIZE.fullmatch(text) is None:
        raise UserError(
            f"{text!r} is not a size: write a whole number and b, kb, mb, gb, tb or pb, as in "
            "'500gb'"
        )
    return text


def _name(text: str) -> str:
    if _NAME.fullmatch(text) is None:
        raise UserError(
            f"{text!r} is not a name: use letters, digits, '.', '_' and '-', and no '.' in front"
        )
    return text


parse_total_time = _time(("ep", "ba", "sp"), zero=False)
parse_moment = _time(("ep", "ba", "sp", "dur"), zero=True)
TotalTime = Annotated[str, AfterValidator(parse_total_time)]
"""How long a run takes."""
Interval = TotalTime
"""How often something is done."""
BatchInterval = Annotated[str, AfterValidator(_time(("ba",), zero=False))]
"""How often something is done, in batches."""
Moment = Annotated[str, AfterValidator(parse_moment)]
"""A point of the run, counted from its start."""
Duration = Annotated[str, AfterValidator(_duration)]
"""A stretch of wall-clock time."""
Size = Annotated[str, AfterValidator(_size)]
"""A number of bytes with its unit."""
Name = Annotated[str, AfterValidator(_name)]
"""Safe as a file name on every store."""
Text = Annotated[str, Field(min_length=1)]
"""Text that is not empty, and no path."""
LocalPath = Annotated[str, AfterValidator(paths.local)]
"""A file or folder of this machine."""
AnyPath = Annotated[str, AfterValidator(paths.resolve)]
"""A file or folder of this machine, or a URL that fsspec knows."""
DataPath = Annotated[str, AfterValidator(paths.data)]
"""A prepared data set: a folder, or a URL that streaming reads."""
VaePath = Annotated[str, AfterValidator(paths.vae)]
"""A folder of this machine, or a name that the hub knows."""
# YAML has lists and no tuples; only the outer type is lenient, the items stay strict.
List = Annotated[tuple[ItemT, ...], Field(strict=False, min_length=1)]
"""One or more values."""
