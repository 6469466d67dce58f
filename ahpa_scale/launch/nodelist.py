# SPDX-License-Identifier: Apache-2.0
"""Expands Slurm's short form of a host list: ``gpu[01-03,7],login`` -> five names."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ahpa_scale.errors import UserError

#: More hosts than this mean a mistake in the list.
MOST_HOSTS = 100_000
_PART = re.compile(r"[^\[\],\s]+|\[[^\[\]]*\]")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?", re.ASCII)


def expand_nodelist(text: str) -> list[str]:
    """The hosts of a Slurm node list, in order.

    Raises:
        UserError: the text is not such a list, or names too many hosts.
    """
    hosts: list[str] = []
    for entry in _split(text):
        parts = _PART.findall(entry)
        if "".join(parts) != entry or not entry:
            raise UserError(f"{text!r} is not a list of hosts such as 'n[01-03,7]'")
        names = [""]
        for part in parts:
            endings = list(_numbers(part[1:-1], text)) if part.startswith("[") else [part]
            if len(names) * len(endings) + len(hosts) > MOST_HOSTS:
                raise UserError(f"{text!r} names more than {MOST_HOSTS} hosts")
            names = [name + ending for name in names for ending in endings]
        hosts += names
    return hosts


def _split(text: str) -> list[str]:
    """Splits at the commas outside brackets."""
    return re.split(r",(?![^\[]*\])", text.strip())


def _numbers(inside: str, text: str) -> Iterator[str]:
    """``01-03,7`` -> 01, 02, 03, 7. Leading zeros are part of the names."""
    for item in inside.split(","):
        match = _RANGE.fullmatch(item)
        if match is None:
            raise UserError(f"{text!r} has {item!r} in brackets, where a range is expected")
        first, last = match[1], match[2] or match[1]
        if int(last) < int(first):
            raise UserError(f"{text!r} has the range {item!r}, which ends before it begins")
        if int(last) - int(first) >= MOST_HOSTS:
            raise UserError(f"{text!r} names more than {MOST_HOSTS} hosts")
        yield from (str(n).zfill(len(first)) for n in range(int(first), int(last) + 1))
