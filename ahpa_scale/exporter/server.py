# SPDX-License-Identifier: Apache-2.0
"""The HTTP server on each node's first rank: /metrics, and /healthz for liveness probes."""

from __future__ import annotations

import errno
import logging
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from ahpa_scale.exporter.board import Board
from ahpa_scale.exporter.collector import BoardCollector
from ahpa_scale.exporter.limits import LimitedHandler, LimitedServer
from ahpa_scale.watch import Pulse

#: Seconds to try: a killed process's loader processes may hold its port for a while.
_PATIENCE = 10.0
_BETWEEN_TRIES = 0.2
_log = logging.getLogger(__name__)

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


@contextmanager
def serving(port: int, board: Board, pulse: Pulse, hang: float | None) -> Iterator[None]:
    """Serves on all of this host's addresses while the body runs.

    Args:
        port: TCP port.
        board: numbers of the training loop.
        pulse: pulse of the main thread.
        hang: seconds without an event after which /healthz answers 503; None: never.

    Raises:
        OSError: the port can't be opened.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(BoardCollector(board, pulse))
    server = _bound(port)
    server.set_app(_application(make_wsgi_app(registry), pulse, hang))
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def health(pulse: Pulse, hang: float | None, now: float) -> tuple[bool, str]:
    """Whether the main thread makes progress, and a line that says where it is.

    Before the first event it counts as starting, without a time limit: ranks wait for each other.

    Args:
        pulse: pulse of the main thread.
        hang: seconds without an event that count as no progress; None: no limit.
        now: monotonic seconds.
    """
    if not pulse.count:
        return True, "starting"
    seconds = max(now - pulse.marked, 0.0)
    text = f"{pulse.stage}, for {seconds:.0f} s"
    return hang is None or seconds < hang, text


def _application(metrics: Application, pulse: Pulse, hang: float | None) -> Application:
    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO")
        if path == "/metrics":
            return metrics(environ, start_response)
        if path == "/healthz":
            well, text = health(pulse, hang, time.monotonic())
            status = "200 OK" if well else "503 Service Unavailable"
        else:
            status, text = "404 Not Found", "there are /metrics and /healthz"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{text}\n".encode()]

    return answer


class _Server(LimitedServer, WSGIServer):
    def server_bind(self) -> None:
        # http.server would look up the host's full name, which waits for DNS.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "", self.server_address[1]
        self.setup_environ()

    def handle_error(self, request: object, client_address: object) -> None:
        # Slow or lost clients are not logged, because there may be many.
        if not isinstance(sys.exc_info()[1], OSError):
            _log.warning("no answer for %s", client_address, exc_info=True)


class _DualStackServer(_Server):
    address_family = socket.AF_INET6

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def _bound(port: int) -> _Server:
    kind: type[_Server] = _DualStackServer if socket.has_dualstack_ipv6() else _Server
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            return kind(("", port), LimitedHandler)
        except OSError as error:
            if error.errno != errno.EADDRINUSE and kind is _DualStackServer:
                kind = _Server  # the kernel supports IPv6, but it is switched off
                continue
            if error.errno != errno.EADDRINUSE or time.monotonic() > until:
                raise
        time.sleep(_BETWEEN_TRIES)
