# SPDX-License-Identifier: Apache-2.0
"""Reads JSON from untrusted writers into values of given types; an error is one line.

Python's own reader accepts more than JSON (NaN, names that come twice, numbers of any length), and
it checks no types. Free of torch.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Hashable, Iterator
from functools import lru_cache
from typing import Any, NoReturn, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ahpa_scale.errors import UserError

#: For pydantic: no value is converted, no name is ignored, every number is finite.
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
#: Most bytes of a text, by default.
LIMIT = 64 << 20
_DEEPEST = 64
_LONGEST_INTEGER = 64

T = TypeVar("T")


def parse(content: bytes | str, where: str, limit: int = LIMIT) -> Any:
    """The value of a JSON text.

    Args:
        content: the text; bytes must be UTF-8.
        where: what it was read from, for the message.
        limit: most bytes or characters that it may have.

    Raises:
        UserError: too long, not JSON, a name that comes twice, a number that is not finite or has
            more than 64 digits, half a surrogate pair, or nested deeper than 64.
    """
    if len(content) > limit:
        raise UserError(f"{where} has more than {limit} bytes, too many for what it should be")
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_finite,
            parse_constant=_constant,
        )
        if "\\ud" in text or "\\uD" in text:
            # Half a surrogate pair is no character: it could never be printed or written.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        _check_depth(value)
    except RecursionError:
        raise UserError(f"{where} is nested deeper than {_DEEPEST}") from None
    except UnicodeError as error:
        raise UserError(f"{where} is not UTF-8 text: {error}") from None
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {error}") from None
    return value


def fit(kind: type[T], value: Any, where: str) -> T:
    """A parsed value as a type that pydantic knows, such as a dataclass with STRICT.

    Args:
        kind: the type.
        value: of `parse`.
        where: what it was read from, for the message.

    Raises:
        UserError: it does not fit; the line names the first place that doesn't.
    """
    try:
        # Through JSON: only there does pydantic's strict mode take a list as a tuple.
        return cast(T, _adapter(cast(Hashable, kind)).validate_json(json.dumps(value)))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(
            f"{part:.80}" if isinstance(part, str) else str(part) for part in first["loc"]
        )
        place = f"{where}: {place}" if place else where
        raise UserError(f"{place}: {first['msg']:.300}") from None


def parse_as(kind: type[T], content: bytes | str, where: str, limit: int = LIMIT) -> T:
    """`parse`, then `fit`, with the errors of both."""
    return fit(kind, parse(content, where, limit), where)


def parse_lines(content: bytes, where: str) -> Iterator[tuple[str, Any]]:
    """The place, for messages, and the value of each line of a text.

    Raises:
        UserError: as `parse`; it names the line.
    """
    for number, line in enumerate(content.splitlines(), start=1):
        place = f"{where}, line {number}"
        yield place, parse(line, place)


@lru_cache(maxsize=64)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        twice = next(
            name for name, times in Counter(name for name, _ in pairs).items() if times > 1
        )
        raise ValueError(f"{twice!r:.80} comes twice")
    return members


def _integer(digits: str) -> int:
    if len(digits) > _LONGEST_INTEGER:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits:.40} is not finite")
    return number


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > _DEEPEST:
            raise RecursionError
        inner: list[Any] = []
        for node in level:
            if isinstance(node, dict):
                inner.extend(node.values())
            elif isinstance(node, list):
                inner.extend(node)
        level = [node for node in inner if isinstance(node, dict | list)]
