# SPDX-License-Identifier: Apache-2.0
"""How a loader's worker begins: signals are its parent's to answer, and no batch is lost unseen."""

from __future__ import annotations

import os
import sys
from multiprocessing.queues import Queue
from types import TracebackType
from typing import NoReturn

from ahpa_scale.requests import leave_signals_to_parent

_ERROR = 1


def begin_worker(worker: int) -> None:
    """Sets up a process that torch has just forked: its `worker_init_fn`.

    Threads of a worker hand its batches over. One that cannot, for a full /dev/shm, too many open
    files or a socket that has gone, only prints why and drops the batch, for which the rank then
    waits for good. So that is the worker's end as well, which the rank notices.

    Args:
        worker: its number.
    """
    del worker
    leave_signals_to_parent()
    say = sys.excepthook

    def end(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> NoReturn:
        say(kind, error, trace)
        os._exit(_ERROR)

    def not_sent(error: BaseException, batch: object) -> NoReturn:
        del batch
        end(type(error), error, error.__traceback__)

    sys.excepthook = end
    Queue._on_queue_feeder_error = staticmethod(not_sent)  # type: ignore[attr-defined]
