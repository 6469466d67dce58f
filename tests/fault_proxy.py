# SPDX-License-Identifier: Apache-2.0
"""An HTTP proxy that makes a store as bad as stores get: `with FaultProxy(endpoint) as proxy: ...`

It stands before the S3 server of the tests, on loopback. Requests pass unchanged with their Host
header, which S3's signatures cover. As a program it is a process of its own, which takes no time
from a run that is measured: `with proxy_process(endpoint) as proxy: ...`.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import IO
from urllib.parse import urlsplit

#: How a request fails: an answer of this status (others will do too), a connection closed before
#: anything is done, or done but its answer cut in the middle.
KINDS = ("500", "503", "cut", "lost")
ALWAYS = -1
_BLOCK = 1 << 16
_HOP = ("connection", "keep-alive", "expect", "transfer-encoding", "proxy-connection")


@dataclass
class Faults:
    """What goes wrong; may be changed at any time.

    Attributes:
        share: of the requests that fail, each in one of `kinds`.
        kinds: see `KINDS`.
        cut_uploads: so many uploads to come are cut in the middle; `ALWAYS` cuts every one.
        cut_after: bytes of an upload that pass before it is cut.
        uploads: only paths that hold this text have their uploads cut.
        spoiled_downloads: so many downloads to come have a flipped bit.
        downloads: only paths that hold this text have their downloads spoiled.
        put_rate: bytes/s for all uploads together; None is as fast as it goes.
    """

    share: float = 0.0
    kinds: tuple[str, ...] = KINDS
    cut_uploads: int = 0
    cut_after: int = 1000
    uploads: str = ""
    spoiled_downloads: int = 0
    downloads: str = ""
    put_rate: float | None = None


@dataclass
class FaultProxy:
    """A proxy before `endpoint`, on a port of its own while the context is open.

    Attributes:
        endpoint: URL of the store.
        faults: what goes wrong from now on.
        counts: what has happened: ``requests``, and failures by kind, ``cut upload`` besides.
    """

    endpoint: str
    seed: int = 0
    faults: Faults = field(default_factory=Faults)
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._draw = random.Random(self.seed)
        self._line_free_at = 0.0
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FaultProxy:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def set(self, faults: Faults | None = None, seed: int | None = None) -> None:
        """Other faults (None: no more of them), drawn from a new seed; counts begin anew."""
        with self._lock:
            self.faults = faults or Faults()
            self._draw = random.Random(self.seed if seed is None else seed)
            self.counts.clear()

    def fault(self) -> str | None:
        """How the next request fails; None if it doesn't."""
        with self._lock:
            self.counts["requests"] += 1
            if self._draw.random() >= self.faults.share:
                return None
            kind = self._draw.choice(self.faults.kinds)
            self.counts[kind] += 1
            return kind

    def cuts_upload(self, path: str, size: int) -> bool:
        """Whether this upload is cut in its middle."""
        with self._lock:
            faults = self.faults
            if not faults.cut_uploads or faults.uploads not in path or size <= faults.cut_after:
                return False
            if faults.cut_uploads != ALWAYS:
                faults.cut_uploads -= 1
            self.counts["cut upload"] += 1
            return True

    def spoils_download(self, path: str) -> bool:
        """Whether a bit of this download is flipped."""
        with self._lock:
            faults = self.faults
            if not faults.spoiled_downloads or faults.downloads not in path:
                return False
            faults.spoiled_downloads -= 1
            self.counts["spoiled download"] += 1
            return True

    def wait_for_line(self, size: int) -> None:
        """Until so many bytes of an upload may pass: one line, which all uploads share."""
        with self._lock:
            if self.faults.put_rate is None:
                return
            start = max(time.monotonic(), self._line_free_at)
            self._line_free_at = start + size / self.faults.put_rate
            due = self._line_free_at
        # The rate may be lifted meanwhile.
        while (left := due - time.monotonic()) > 0 and self.faults.put_rate is not None:
            time.sleep(min(left, 0.5))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    proxy: FaultProxy

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are what is tested."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Otherwise the last bytes of an answer wait for the client's acknowledgement.
    disable_nagle_algorithm = True
    server: _Server
    close_connection: bool

    def _pass_on(self) -> None:
        proxy = self.server.proxy
        fault = proxy.fault()
        size = int(self.headers.get("Content-Length") or 0)
        if fault == "cut":
            self._hang_up()
            return
        if fault is not None and fault.isdecimal():
            self._refuse(int(fault), size)
            return
        parts = urlsplit(proxy.endpoint)
        assert parts.hostname is not None
        store = HTTPConnection(parts.hostname, parts.port, timeout=60)
        try:
            store.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _HOP:
                    store.putheader(name, value)
            store.endheaders()
            if not self._send_body(store, size):
                self._hang_up()
                return
            self._answer(store.getresponse(), lost=fault == "lost")
        except (OSError, HTTPException):
            self._hang_up()
        finally:
            store.close()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on

    def _send_body(self, store: HTTPConnection, size: int) -> bool:
        """Whether all of it was sent on."""
        proxy = self.server.proxy
        upload = self.command == "PUT"
        cut = upload and proxy.cuts_upload(self.path, size)
        left = proxy.faults.cut_after if cut else size
        while left:
            block = self.rfile.read(min(left, _BLOCK))
            if not block:
                return False
            if upload:
                proxy.wait_for_line(len(block))
            store.send(block)
            left -= len(block)
        return not cut

    def _answer(self, response: HTTPResponse, lost: bool) -> None:
        body = response.read()
        own: tuple[str, ...] = ()
        if body and self.command == "GET" and self.server.proxy.spoils_download(self.path):
            own = ("x-amz-checksum-",)  # by which a client would notice before we do
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        self.send_response_only(response.status, response.reason)
        for name, value in response.getheaders():
            if name.lower() not in (*_HOP, "content-length") and not name.lower().startswith(own):
                self.send_header(name, value)
        # The answer to HEAD tells the length of a body that is not sent.
        length = response.getheader("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(body)))
        if lost and not body:
            self._hang_up()
            return
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if lost else body)
        if lost:
            self._hang_up()

    def _refuse(self, status: int, size: int) -> None:
        while size:  # a client that is still sending would not see the answer
            block = self.rfile.read(min(size, _BLOCK))
            if not block:
                break
            size -= len(block)
        self.send_response_only(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _hang_up(self) -> None:
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@dataclass
class ProxyProcess:
    """A proxy that is a process of its own.

    Attributes:
        url: where it listens.
        commands: its standard input.
    """

    url: str
    commands: IO[str]

    def set_put_rate(self, rate: float | None) -> None:
        """Bytes/s for uploads from now on; None is as fast as it goes."""
        self.commands.write(json.dumps(rate) + "\n")
        self.commands.flush()


@contextmanager
def proxy_process(endpoint: str) -> Iterator[ProxyProcess]:
    """Starts a proxy before `endpoint`; it ends with the block."""
    process = subprocess.Popen(
        [sys.executable, __file__, endpoint],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield ProxyProcess(process.stdout.readline().strip(), process.stdin)
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Prints its URL; takes rates for uploads from standard input, and ends with it."""
    with FaultProxy(sys.argv[1]) as proxy:
        print(proxy.url, flush=True)
        for line in sys.stdin:
            proxy.faults.put_rate = json.loads(line)


if __name__ == "__main__":
    main()
