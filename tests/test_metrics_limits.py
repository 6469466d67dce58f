# SPDX-License-Identifier: Apache-2.0
"""The network takes no descriptors, threads or time from the process that serves /metrics."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from job import ROOT
from scrape import free_port, get

from ahpa_scale.exporter.limits import PLACES

SERVER = """
import resource, sys, threading
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
from ahpa_scale.exporter import Board, limits, serving
from ahpa_scale.watch import Pulse
limits._SECONDS = float(sys.argv[2])
with serving(int(sys.argv[1]), Board(), Pulse(), None):
    print("serving", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def server(seconds: float) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(port), str(seconds)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "serving\n"
    try:
        yield port, process
    finally:
        _, said = process.communicate("")
    assert process.returncode == 0
    assert said == "", "clients fill no log"


def held(process: subprocess.Popen[str]) -> tuple[int, int]:
    """Descriptors and threads."""
    place = f"/proc/{process.pid}"
    return len(os.listdir(f"{place}/fd")), len(os.listdir(f"{place}/task"))


def is_closed(client: socket.socket) -> bool:
    with contextlib.suppress(ConnectionError):
        return client.recv(1) == b""
    return True


def test_hundreds_of_connections_that_say_nothing_keep_no_scrape_out():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with server(seconds=600) as (port, process), contextlib.ExitStack() as open_ones:
            for number in range(400):
                client = socket.create_connection(("127.0.0.1", port), timeout=60)
                open_ones.enter_context(client)
                with contextlib.suppress(ConnectionError):
                    client.sendall(b"GET /met")
                if number % 200 == 199:
                    assert get(port, "/healthz") == (200, "starting\n")
                    assert get(port, "/metrics")[0] == 200
            descriptors, threads = held(process)
            assert descriptors < 2 * PLACES + 30
            assert threads < 2 * PLACES + 10
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("line", [b"GET /" + b"a" * 100_000, b"X: y\r\n" * 100_000])
def test_a_request_without_end_is_not_read_to_its_end(line):
    with (
        server(seconds=600) as (port, _),
        socket.create_connection(("127.0.0.1", port), timeout=60) as client,
    ):
        # Where the kernel takes all of it, an answer or an end comes; else sending fails.
        with contextlib.suppress(ConnectionError):
            client.sendall(line * 100)
        with contextlib.suppress(ConnectionError):
            while client.recv(1 << 16):
                pass


def test_a_client_that_drips_is_hung_up_on():
    with (
        server(seconds=1) as (port, _),
        socket.create_connection(("127.0.0.1", port), timeout=0.1) as client,
    ):
        end = time.monotonic() + 120
        while time.monotonic() < end:
            try:
                client.sendall(b"G")
                if is_closed(client):
                    return
            except TimeoutError:
                continue
            except ConnectionError:
                return
        raise AssertionError("still served")
