# SPDX-License-Identifier: Apache-2.0
"""What one client of an HTTP server may take: so many bytes, so many seconds, one of few places.

The server lives in a training process, whose descriptors, threads and memory are not the network's.
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

#: Connections that have a thread at a time. One too many costs the oldest its place, so that a
#: scrape is answered whoever sits on the others.
PLACES = 32
#: Bytes that a client may send; a request for /metrics has some hundred.
_REQUEST = 16 << 10
#: Seconds from its first byte to the last of the answer, however it spreads them.
_SECONDS = 10.0


class _Request(io.RawIOBase):
    """What a client sends, as far as it may."""

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
    """Reads no more and no longer than a scrape takes."""

    def setup(self) -> None:
        """Bounds the request by bytes, and it and its answer by time."""
        super().setup()
        self.rfile.close()
        deadline = time.monotonic() + _SECONDS
        self.rfile = io.BufferedReader(_Request(self.connection, deadline))

    def log_message(self, format: str, *args: object) -> None:
        """A scrape is nothing to write down."""


class LimitedServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """A thread for each of a few connections at most."""

    daemon_threads = True
    block_on_close = False
    # Connections that wait for a place; the kernel makes those above it try again, in seconds.
    request_queue_size = 4 * PLACES

    def __init__(self, *args: Any, **options: Any) -> None:
        self._lock = threading.Lock()
        # In the order of their arrival.
        self._served: dict[socket.socket, None] = {}
        # Hung up on; their threads need a moment to notice.
        self._leaving: set[socket.socket] = set()
        super().__init__(*args, **options)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serves a connection, at the cost of the oldest one where there is no place."""
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
        """Ends a connection and gives its place back."""
        super().shutdown_request(request)
        with self._lock:
            self._served.pop(request, None)
            self._leaving.discard(request)


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):  # it has gone by itself
        connection.shutdown(socket.SHUT_RDWR)
