# SPDX-License-Identifier: Apache-2.0
"""Tries again, with growing pauses, what a store refuses now and then."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)

T = TypeVar("T")
ATTEMPTS = 6
#: Seconds between attempts; tests have no time for them.
PAUSES = wait_exponential(multiplier=0.5, max=15) + wait_random(0, 0.5)
_log = logging.getLogger(__name__)


def persistently(action: Callable[..., T], *arguments: Any) -> T:
    """Calls `action`, up to six times with pauses of half a minute in all while it raises OSError.

    What will not change by waiting (a missing file, a full disk, a missing right on a local disk)
    is raised at once.

    Raises:
        OSError: the last attempt's.
    """
    for attempt in Retrying(
        stop=stop_after_attempt(ATTEMPTS),
        wait=PAUSES,
        retry=retry_if_exception(_may_pass),
        before_sleep=_say,
        reraise=True,
    ):
        with attempt:
            return action(*arguments)
    raise AssertionError("the last attempt raises or returns")


def _may_pass(error: BaseException) -> bool:
    # An errno comes from this machine's own disk; stores' errors have none.
    return (
        isinstance(error, OSError)
        and error.errno is None
        and not isinstance(error, FileNotFoundError)
    )


def _say(attempt: RetryCallState) -> None:
    assert attempt.outcome is not None
    _log.warning(
        "attempt %d failed, trying again: %s", attempt.attempt_number, attempt.outcome.exception()
    )
