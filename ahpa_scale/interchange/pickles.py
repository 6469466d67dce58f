# SPDX-License-Identifier: Apache-2.0
"""Reads a pickle as data: containers, numbers, text, and what a list of builders allows.

A pickle is a program for a stack machine. The one here imports, calls and sets nothing: a name
stays a name, and an object that no builder makes is dropped and counted. Python's `pickletools`
splits the bytes into opcodes. Free of torch.
"""

from __future__ import annotations

import pickletools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ahpa_scale.errors import UserError
from ahpa_scale.interchange.pickle_machine import Builder, DamagedError, Machine

#: Most bytes of a pickle. The elements of tensors lie outside of it.
LIMIT = 64 << 20


@dataclass(frozen=True)
class Plain:
    """What a pickle held.

    Attributes:
        value: containers, numbers, text and built values; `DROPPED` for anything else.
        dropped: how many objects of which class were dropped.
    """

    value: Any
    dropped: Counter[str]


def read_pickle(
    content: bytes,
    where: str,
    builders: Mapping[str, Builder],
    persistent: Callable[[Any], Any],
    bags: Iterable[str] = (),
) -> Plain:
    """Reads a pickle of any protocol without executing it.

    Args:
        content: the pickle.
        where: what it was read from, for the message.
        builders: what makes a value of the arguments that a pickle gives to a function or class, by
            its dotted name. A builder may return `DROPPED`, and raises UserError for bad arguments.
        persistent: makes a value of a persistent id.
        bags: dotted names of classes that are read as `Attributes`.

    Raises:
        UserError: the pickle is damaged or too large, or a builder refuses its arguments.
    """
    if len(content) > LIMIT:
        raise UserError(f"{where} holds a pickle of {len(content)} bytes, which is too large")
    machine = Machine(builders, persistent, frozenset(bags))
    try:
        # Raises ValueError for bytes that are no pickle, which includes bad numbers and text.
        for opcode, argument, _ in pickletools.genops(content):
            machine.step(opcode.name, argument)
    except (ValueError, DamagedError) as error:
        if isinstance(error, UserError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where} holds a damaged pickle: {reason}") from None
    return Plain(machine.result, machine.dropped)
