# SPDX-License-Identifier: Apache-2.0
"""Services that don't answer now but may in a minute: no user's mistake, so worth another try."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from http import HTTPStatus


class UnreachableError(OSError):
    """A service that the work needs doesn't answer, or says that it can't for now."""


def is_unreachable(error: BaseException) -> bool:
    """Whether an error comes from a connection that failed, timed out or broke, from a host name
    that was not resolved, or from an HTTP status of 429 or at least 500.
    """
    for cause in causes(error):
        if isinstance(cause, ConnectionError | TimeoutError | socket.gaierror):
            return True
        status = getattr(getattr(cause, "response", None), "status_code", 0)
        if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return True
    return False


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes, the nearest first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
