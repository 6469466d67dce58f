# SPDX-License-Identifier: Apache-2.0
"""Limits for clients of the HTTP server: bytes and seconds for each, and the number of connections.

The server runs in a training process. Clients must not use up its descriptors, threads and memory.
"""

from __future__ import annotations

import io
import socket
import socketserver
import threading
import time
from contextlib import suppress
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler

#: Connections that have a thread at a time. One more closes the oldest, so that a scrape is always
#: answered, even if other clients keep connections open.
PLACES = 32
#: Bytes that a client may send. A request for /metrics has some hundred.
_REQUEST = 16 << 10
#: Seconds for one connection, from its start to the end of the answer.
_SECONDS = 10.0


class _Request(io.RawIOBase):
    """The bytes that a client sends, up to the limits."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection, self._deadline, self._left = connection, deadline, _REQUEST

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with memoryview(buffer) as view:
            wanted = min(len(view), self._left)
            self._connection.settimeout(max(self._deadline - time.monotonic(), 0.001))
            count = self._connection.recv_into(view[:wanted]) if wanted else 0
        self._left -= count
        return count


class LimitedHandler(WSGIRequestHandler):
    """Limits the size and the time of a request."""

    def setup(self) -> None:
        """Limits the request's size, and the time of the request and its answer."""
        super().setup()
        self.rfile.close()
        deadline = time.monotonic() + _SECONDS
        self.rfile = io.BufferedReader(_Request(self.connection, deadline))

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are not logged."""


class LimitedServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """A server with one thread for each connection, at most `PLACES` of them."""

    daemon_threads = True
    block_on_close = False
    # Connections that wait for a place. Beyond that, the kernel lets clients retry after seconds.
    request_queue_size = 4 * PLACES

    def __init__(self, *args: Any, **options: Any) -> None:
        self._lock = threading.Lock()
        # In order of arrival.
        self._served: dict[socket.socket, None] = {}
        # Closed connections whose threads have not noticed yet.
        self._leaving: set[socket.socket] = set()
        super().__init__(*args, **options)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serves a connection. If all places are taken, closes the oldest one."""
        with self._lock:
            if len(self._served) == PLACES:
                oldest = next(iter(self._served))
                del self._served[oldest]
                self._leaving.add(oldest)
                _hang_up(oldest)
            room = len(self._leaving) < PLACES
            if room:
                self._served[request] = None
        if room:
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        """Ends a connection and frees its place."""
        super().shutdown_request(request)
        with self._lock:
            self._served.pop(request, None)
            self._leaving.discard(request)


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):  # the client has already gone
        connection.shutdown(socket.SHUT_RDWR)
