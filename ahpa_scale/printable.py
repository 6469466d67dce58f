# SPDX-License-Identifier: Apache-2.0
"""Text that is safe to print and to keep: control characters are written out, and secrets are
masked. Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Callable

# Controls except tab and line feed, line separators, marks that change the reading direction, and
# lone surrogates.
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_PASSWORD = re.compile(r"(?<=://)([^\s/?#@:]*):([^\s/?#]+)@")
#: Characters of the shortest value to conceal: shorter ones occur in other words by chance.
_SHORTEST = 6
_concealed: dict[str, str] = {}


def printable(text: str) -> str:
    """A text with `user:password@` of URLs and all concealed values masked, and with control
    characters written out, such as \\x1b.
    """
    return _OBEYED.sub(_written_out, without_secrets(text))


def without_secrets(text: str) -> str:
    """A text with `user:password@` of URLs and all concealed values masked.

    Call it before a text is cut: a password whose URL is cut off is not recognised.
    """
    for value in sorted(_concealed, key=len, reverse=True):
        text = text.replace(value, _concealed[value])
    return masked(text)


def masked(text: str) -> str:
    """A text with the passwords of its URLs masked."""
    return _PASSWORD.sub(r"\1:***@", text)


def named_passwords(text: str, name: Callable[[str], str]) -> str:
    """A text with each password of its URLs replaced by what `name` gives for it. Passwords that
    are interpolations, ``${...}``, stay.
    """

    def replaced(match: re.Match[str]) -> str:
        user, password = match.groups()
        return match[0] if "$" in password else f"{user}:{name(password)}@"

    return _PASSWORD.sub(replaced, text)


def conceal(value: str, shown: str) -> None:
    """From now on shows another text in place of a value.

    Args:
        value: for example an environment variable's. Values of under six characters stay.
        shown: the text in its place.
    """
    if len(value) >= _SHORTEST:
        _concealed[value] = shown


def _written_out(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
