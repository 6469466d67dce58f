# SPDX-License-Identifier: Apache-2.0
"""What doesn't answer now and may in a minute: no mistake of the user's, so worth another try."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from http import HTTPStatus


class UnreachableError(OSError):
    """A service that the work needs doesn't answer, or says that it can't for now."""


def is_unreachable(error: BaseException) -> bool:
    """Whether an error comes of a connection that was not had, timed out or broke, of a name that
    was not resolved, or of an HTTP answer that says so (429, and 500 and above).
    """
    for cause in causes(error):
        if isinstance(cause, ConnectionError | TimeoutError | socket.gaierror):
            return True
        status = getattr(getattr(cause, "response", None), "status_code", 0)
        if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return True
    return False


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came of, the nearest first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
