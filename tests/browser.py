# SPDX-License-Identifier: Apache-2.0
"""Chromium without a window, which looks at a page of this machine and tells what went wrong in it.

It is driven through pipes by the DevTools protocol, so no port is opened and no package is needed:
https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import functools
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe"),
    # No name resolves: nothing but files of this machine can be reached.
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_SECONDS = 120.0
#: Schemes of requests that stay within the page.
_WITHIN = ("file:", "data:", "blob:")


@functools.cache
def program() -> str | None:
    """The browser; None where there is none."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


def why_not() -> str | None:
    """Why no page can be looked at here; None where it can."""
    return None if program() else "not installed: chromium (tools/get_chromium.sh)"


@dataclass
class Page:
    """A page that is open.

    Attributes:
        complaints: errors and warnings of its console, and exceptions of its scripts.
        requests: what it asked for from elsewhere.
    """

    pipes: _Pipes
    session: str
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    _loaded: bool = False

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls the protocol, and takes in what the page told meanwhile."""
        number = self.pipes.send(method, parameters, self.session)
        while True:
            message = self.pipes.receive()
            if message.get("id") == number:
                assert "error" not in message, message
                return dict(message["result"])
            self._take(message.get("method", ""), message.get("params", {}))

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression, waited for if it is a promise."""
        told = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def open(self, path: Path, ready: str) -> None:
        """Opens a file and waits until a JavaScript expression is true."""
        self._loaded = False
        self.call("Page.navigate", url=path.as_uri())
        while not self._loaded:
            message = self.pipes.receive()
            self._take(message.get("method", ""), message.get("params", {}))
        self.wait_for(ready)

    def wait_for(self, expression: str) -> None:
        """Waits until a JavaScript expression is true."""
        deadline = time.monotonic() + _SECONDS
        while not self.value(f"Boolean({expression})"):
            assert time.monotonic() < deadline, (expression, self.complaints)
            time.sleep(0.05)

    def screenshot(self, path: Path) -> None:
        """Keeps a picture of the whole page."""
        told = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(told["data"]))

    def _take(self, method: str, told: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.complaints.append(told["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(told["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning"):
            self.complaints.append(str(told["args"]))
        elif method == "Network.requestWillBeSent":
            url = told["request"]["url"]
            if not url.startswith(_WITHIN):
                self.requests.append(url)


class _Pipes:
    """Messages to and from the browser, each ended by a zero byte."""

    def __init__(self, to: int, from_: int) -> None:
        self._to, self._from = to, from_
        self._numbers = itertools.count(1)
        self._rest = b""

    def send(self, method: str, parameters: dict[str, Any], session: str | None = None) -> int:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        return number

    def receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._from, 1 << 20)
            assert part, "the browser has gone"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = self.send(method, parameters)
        while (message := self.receive()).get("id") != number:
            pass
        return dict(message["result"])


@contextmanager
def browser_page(*, width: int = 1200, dark: bool = False, touch: bool = False) -> Iterator[Page]:
    """A new browser with an empty page.

    Args:
        width: of the page, in CSS pixels.
        dark: whether the user wants dark pages.
        touch: whether the device is a telephone.
    """
    found = program()
    assert found is not None
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
        read_by_it, to = os.pipe()
        from_, written_by_it = os.pipe()
        # The protocol wants descriptors 3 and 4.
        line = f'exec "$@" 3<&{read_by_it} 4>&{written_by_it}'
        command = ["bash", "-c", line, "bash", found, *_FLAGS, f"--user-data-dir={profile}"]
        process = subprocess.Popen(
            [*command, "about:blank"],
            pass_fds=(read_by_it, written_by_it),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_by_it)
        os.close(written_by_it)
        try:
            pipes = _Pipes(to, from_)
            target = pipes.ask("Target.createTarget", url="about:blank")["targetId"]
            attached = pipes.ask("Target.attachToTarget", targetId=target, flatten=True)
            page = Page(pipes, attached["sessionId"])
            for domain in ("Page", "Runtime", "Log", "Network"):
                page.call(f"{domain}.enable")
            page.call(
                "Emulation.setDeviceMetricsOverride",
                width=width,
                height=900,
                deviceScaleFactor=1,
                mobile=touch,
            )
            page.call("Emulation.setTouchEmulationEnabled", enabled=touch)
            scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            page.call("Emulation.setEmulatedMedia", features=[scheme])
            yield page
        finally:
            process.kill()
            process.wait()
            os.close(to)
            os.close(from_)
