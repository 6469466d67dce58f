# SPDX-License-Identifier: Apache-2.0
"""How long a store that does not answer is asked again: the one policy for all reads and writes."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator
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
#: Environment variable: seconds for which a store is asked again before the work ends.
PATIENCE = "AHPA_STORE_PATIENCE"
_SECONDS = 300.0
#: Between two attempts: full jitter, so that a thousand ranks do not come back as one.
PAUSES = wait_random_exponential(multiplier=0.5, max=30)
_asks_once: ContextVar[bool] = ContextVar("asks_once", default=False)
_log = logging.getLogger(__name__)


def patience_seconds() -> float:
    """Seconds for which a store is asked again.

    Raises:
        UserError: the environment variable holds no number.
    """
    text = os.environ.get(PATIENCE, "")
    try:
        seconds = float(text or _SECONDS)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise UserError(f"{PATIENCE} is {text!r}: give a number of seconds")
    return seconds


def patiently(action: Callable[[], T]) -> T:
    """What `action` returns; it is called again, with growing pauses, while a store is unreachable.

    Raises:
        UnreachableError: the last attempt's, once patience is over.
    """
    if _asks_once.get():
        return action()
    seconds = patience_seconds()
    retrying = Retrying(
        stop=stop_after_delay(seconds),
        wait=PAUSES,
        retry=retry_if_exception_type(UnreachableError),
        before_sleep=_say,
        reraise=True,
    )
    try:
        return retrying(action)
    except UnreachableError as error:
        count = retrying.statistics["attempt_number"]
        raise UnreachableError(f"{error} ({count} attempts within {seconds:g} s)") from error


@contextmanager
def asking_once() -> Iterator[None]:
    """Stores are asked once in this thread: for those who come back by themselves."""
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
