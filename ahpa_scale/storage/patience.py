# SPDX-License-Identifier: Apache-2.0
"""How long a store that does not answer is retried: one policy for all reads and writes."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_random_exponential,
)

from ahpa_scale.errors import UserError
from ahpa_scale.unreachable import UnreachableError

T = TypeVar("T")
#: Environment variable: seconds for which a store is retried before the work ends.
PATIENCE = "AHPA_STORE_PATIENCE"
_SECONDS = 300.0
#: Pauses between attempts, with full jitter so that a thousand ranks do not retry at once.
PAUSES = wait_random_exponential(multiplier=0.5, max=30)
#: An attempt may always take this many seconds, however little patience is left.
_ATTEMPT = 30.0
_BETWEEN_LOOKS = 0.5
_asks_once: ContextVar[bool] = ContextVar("asks_once", default=False)
_log = logging.getLogger(__name__)


def patience_seconds() -> float:
    """Seconds for which a store is retried.

    Raises:
        UserError: the environment variable holds no number of at least 0.
    """
    text = os.environ.get(PATIENCE, "")
    try:
        seconds = float(text or _SECONDS)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise UserError(f"{PATIENCE} is {text!r}: give a number of seconds")
    return seconds


class Progress:
    """When bytes last moved, if ever."""

    def __init__(self) -> None:
        self.last: float | None = None

    def note(self) -> None:
        """Record that bytes move now."""
        self.last = time.monotonic()


def patiently(url: str | os.PathLike[str], action: Callable[[Progress], T]) -> T:
    """The result of `action`, called again with growing pauses while a store is unreachable.

    Clients have their own timeouts, but also retry by themselves, and none notices a store that
    accepts no bytes. So an attempt that moves nothing for too long is abandoned in its thread.

    Args:
        url: what is asked for.
        action: must note its progress if it may move many bytes.

    Raises:
        UnreachableError: the last attempt's error, once patience is over.
    """
    seconds, begun = patience_seconds(), time.monotonic()

    def left() -> float:
        return max(begun + seconds - time.monotonic(), 0.0)

    def attempt() -> T:
        return _heard_of(url, action, left(), seconds)

    if _asks_once.get():
        return attempt()
    retrying = Retrying(
        stop=stop_after_delay(seconds),
        wait=lambda state: min(PAUSES(state), left()),
        retry=retry_if_exception_type(UnreachableError),
        before_sleep=_say,
        reraise=True,
    )
    try:
        return retrying(attempt)
    except UnreachableError as error:
        count = retrying.statistics["attempt_number"]
        raise UnreachableError(f"{error} ({count} attempts within {seconds:g} s)") from error


def _heard_of(
    url: str | os.PathLike[str], action: Callable[[Progress], T], first: float, seconds: float
) -> T:
    """The result of `action`. It must end or move bytes within `first` seconds. Once bytes have
    moved, pauses may last `seconds`.
    """
    progress, outcome, begun = Progress(), Future[T](), time.monotonic()

    def run() -> None:
        try:
            outcome.set_result(action(progress))
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="store", daemon=True).start()
    while not wait([outcome], _BETWEEN_LOOKS).done:
        moved = progress.last
        quiet = time.monotonic() - (begun if moved is None else moved)
        if quiet > max(first if moved is None else seconds, _ATTEMPT):
            raise UnreachableError(f"{url} does not answer: nothing moved for {quiet:.0f} s")
    return outcome.result()


@contextmanager
def asking_once() -> Iterator[None]:
    """No retries in this thread while the body runs: for callers that retry by themselves."""
    token = _asks_once.set(True)
    try:
        yield
    finally:
        _asks_once.reset(token)


def _say(attempt: RetryCallState) -> None:
    assert attempt.outcome is not None
    _log.warning(
        "attempt %d failed, trying again: %s", attempt.attempt_number, attempt.outcome.exception()
    )
