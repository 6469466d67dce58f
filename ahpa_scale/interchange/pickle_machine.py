# SPDX-License-Identifier: Apache-2.0
"""The stack machine of pickles, without the opcodes' power: nothing is imported, called or set.

Opcodes are explained in Python's own `pickletools`. Free of torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names, such as ``collections.OrderedDict``."""

    text: str


class Dropped:
    """Stands where an object was that nobody here builds."""


class Attributes(dict[str, Any]):
    """An object that was only a bag of attributes, such as ``argparse.Namespace``."""


class DamagedError(Exception):
    """The opcodes make no sense."""


DROPPED = Dropped()
Builder = Callable[[tuple[Any, ...]], Any]

_MOST_REMEMBERED = 4_000_000
_HIGHEST_PROTOCOL = 5
_KEYS = (str, int, float, bool, type(None))
_PUSH_ARGUMENT = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
#: Opcodes that push an object of these kinds, which no checkpoint needs.
_UNNEEDED = {
    "EMPTY_SET": "set",
    "BYTEARRAY8": "bytearray",
    "NEXT_BUFFER": "buffer",
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), "extension"),
}
_NO_EFFECT = ("FRAME", "READONLY_BUFFER")


class Machine:
    """The stack, the marks and the memo. Arguments as for `read_pickle`."""

    def __init__(
        self,
        builders: Mapping[str, Builder],
        persistent: Callable[[Any], Any],
        bags: frozenset[str],
    ) -> None:
        self._builders, self._persistent, self._bags = builders, persistent, bags
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self.dropped: Counter[str] = Counter()
        self.result: Any = DROPPED

    def step(self, opcode: str, argument: Any) -> None:
        """One opcode. Unknown ones are refused."""
        if opcode in _PUSH_ARGUMENT:
            self._stack.append(argument)
        elif opcode in _CONSTANTS:
            self._stack.append(_CONSTANTS[opcode])
        elif opcode in _TUPLES:
            self._stack.append(tuple(self._pop_many(_TUPLES[opcode])))
        elif opcode in _UNNEEDED:
            self._stack.append(self._drop(Name(_UNNEEDED[opcode])))
        elif opcode not in _NO_EFFECT:
            act = getattr(self, f"_op_{opcode.lower()}", None)
            if act is None:
                raise DamagedError(f"the opcode {opcode} is not read")
            act(argument)

    # The stack

    def _pop(self) -> Any:
        if not self._stack:
            raise DamagedError("it takes from an empty stack")
        return self._stack.pop()

    def _pop_many(self, count: int) -> list[Any]:
        return [self._pop() for _ in range(count)][::-1]

    def _top(self) -> Any:
        if not self._stack:
            raise DamagedError("it looks at an empty stack")
        return self._stack[-1]

    def _to_mark(self) -> list[Any]:
        if not self._marked:
            raise DamagedError("it goes back to a mark that is not there")
        items, self._stack = self._stack, self._marked.pop()
        return items

    def _op_proto(self, protocol: int) -> None:
        if protocol > _HIGHEST_PROTOCOL:
            raise DamagedError(f"protocol {protocol} is not known")

    def _op_stop(self, _: Any) -> None:
        self.result = self._pop()

    def _op_mark(self, _: Any) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def _op_pop(self, _: Any) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._to_mark()

    def _op_pop_mark(self, _: Any) -> None:
        self._to_mark()

    def _op_dup(self, _: Any) -> None:
        self._stack.append(self._top())

    # The memo

    def _op_put(self, index: int) -> None:
        if len(self._memo) >= _MOST_REMEMBERED:
            raise DamagedError(f"it remembers more than {_MOST_REMEMBERED} objects")
        self._memo[index] = self._top()

    _op_binput = _op_long_binput = _op_put

    def _op_memoize(self, _: Any) -> None:
        self._op_put(len(self._memo))

    def _op_get(self, index: int) -> None:
        if index not in self._memo:
            raise DamagedError("it recalls what it never remembered")
        self._stack.append(self._memo[index])

    _op_binget = _op_long_binget = _op_get

    # Containers

    def _op_empty_list(self, _: Any) -> None:
        self._stack.append([])

    def _op_list(self, _: Any) -> None:
        items = self._to_mark()  # which changes the stack that is appended to
        self._stack.append(items)

    def _op_tuple(self, _: Any) -> None:
        items = self._to_mark()
        self._stack.append(tuple(items))

    def _op_append(self, _: Any) -> None:
        self._extend([self._pop()])

    def _op_appends(self, _: Any) -> None:
        self._extend(self._to_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._top()
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Dropped):
            raise DamagedError("it appends to what is no list")

    def _op_empty_dict(self, _: Any) -> None:
        self._stack.append({})

    def _op_dict(self, _: Any) -> None:
        items = self._to_mark()
        self._stack.append({})
        self._set(items)

    def _op_setitem(self, _: Any) -> None:
        self._set(self._pop_many(2))

    def _op_setitems(self, _: Any) -> None:
        self._set(self._to_mark())

    def _set(self, items: list[Any]) -> None:
        target = self._top()
        if len(items) % 2:
            raise DamagedError("a key has no value")
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                # Other keys could be nested so deep that Python crashes on their hash.
                if isinstance(key, _KEYS):
                    target[key] = value
                else:
                    self._drop(Name("a key that is neither text nor number"))
        elif not isinstance(target, Dropped):
            raise DamagedError("it sets items of what is no dictionary")

    def _op_additems(self, _: Any) -> None:
        self._to_mark()
        self._top()

    def _op_frozenset(self, _: Any) -> None:
        self._to_mark()
        self._stack.append(self._drop(Name("frozenset")))

    # Names and objects

    def _op_global(self, argument: str) -> None:
        self._stack.append(Name(argument.replace(" ", ".", 1)))

    def _op_stack_global(self, _: Any) -> None:
        module, name = self._pop_many(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise DamagedError("it names something by what is no text")
        self._stack.append(Name(f"{module}.{name}"))

    def _op_reduce(self, _: Any) -> None:
        called, arguments = self._pop_many(2)
        self._stack.append(self._built(called, arguments))

    _op_newobj = _op_reduce

    def _op_newobj_ex(self, _: Any) -> None:
        made, _arguments, _keywords = self._pop_many(3)
        self._stack.append(self._drop(made))

    def _op_inst(self, argument: str) -> None:
        self._to_mark()
        self._stack.append(self._drop(Name(argument.replace(" ", ".", 1))))

    def _op_obj(self, _: Any) -> None:
        items = self._to_mark()
        self._stack.append(self._drop(items[0] if items else None))

    def _op_build(self, _: Any) -> None:
        state = self._pop()
        target = self._top()
        # What a dictionary that was built has besides its items, such as a state dict's metadata,
        # is nothing that is needed.
        if isinstance(target, Attributes) and isinstance(state, dict):
            target.update({key: value for key, value in state.items() if isinstance(key, str)})

    def _op_persid(self, argument: str) -> None:
        self._stack.append(self._persistent(argument))

    def _op_binpersid(self, _: Any) -> None:
        self._stack.append(self._persistent(self._pop()))

    def _built(self, called: Any, arguments: Any) -> Any:
        if not isinstance(called, Name) or not isinstance(arguments, tuple):
            return self._drop(called)
        if called.text in self._bags and not arguments:
            return Attributes()
        if called.text not in self._builders:
            return self._drop(called)
        return self._builders[called.text](arguments)

    def _drop(self, what: Any) -> Dropped:
        self.dropped[what.text[:80] if isinstance(what, Name) else type(what).__name__] += 1
        return DROPPED
