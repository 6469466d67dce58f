# SPDX-License-Identifier: Apache-2.0
"""How loader workers start and fail: no batch is lost, and an error shows its cause first."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from multiprocessing.queues import Queue
from types import TracebackType
from typing import Any, NoReturn

from streaming import StreamingDataLoader

from ahpa_scale.errors import UserError
from ahpa_scale.exits import FAILED
from ahpa_scale.preemption import leave_signals_to_parent
from ahpa_scale.unreachable import UnreachableError


def begin_worker(worker: int) -> None:
    """The `worker_init_fn`: sets up a process that torch has just forked.

    A thread of the worker sends its batches. If that fails (full /dev/shm, too many open files, a
    closed socket), the thread only prints why and drops the batch, and the rank waits for it
    forever. So such a failure ends the worker too, which the rank notices.

    Args:
        worker: number of the worker.
    """
    del worker
    leave_signals_to_parent()
    say = sys.excepthook

    def end(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> NoReturn:
        say(kind, error, trace)
        os._exit(FAILED)

    def not_sent(error: BaseException, batch: object) -> NoReturn:
        del batch
        end(type(error), error, error.__traceback__)

    sys.excepthook = end
    Queue._on_queue_feeder_error = staticmethod(not_sent)  # type: ignore[attr-defined]


class Loader(StreamingDataLoader):
    """Raises a worker's error with the same type and with the cause in its first line. Our own
    errors are only that line; others also have the worker's traceback.
    """

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from super().__iter__()
        except Exception as error:
            text = error.args[0] if len(error.args) == 1 else None
            if not isinstance(text, str) or not text.startswith("Caught "):
                raise
            cause = _cause(text).removeprefix(f"{_name(type(error))}: ")
            if isinstance(error, UserError | UnreachableError):
                raise type(error)(cause) from None
            # Keep the text's own type: torch has one for texts that a KeyError would quote.
            error.args = (type(text)(f"{cause}\n{text}"),)
            raise


def _cause(text: str) -> str:
    """The text after the traceback, in torch's message about a worker's error."""
    lines = text.splitlines()
    indented = (number for number, line in enumerate(lines) if line.startswith("  "))
    return "\n".join(lines[max(indented, default=-1) + 1 :]) or lines[-1]


def _name(kind: type[BaseException]) -> str:
    """A type's name as tracebacks show it."""
    module = kind.__module__
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"
