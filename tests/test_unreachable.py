# SPDX-License-Identifier: Apache-2.0
"""A hub that doesn't answer is worth another try; a mistake isn't."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import requests
from s3_server import free_ports

from ahpa_scale.config.errors import exit_on_user_error
from ahpa_scale.exits import TRY_AGAIN
from ahpa_scale.unreachable import UnreachableError, is_unreachable


@contextmanager
def answering(status: int, **headers: str) -> Iterator[str]:
    """The URL of a server on loopback that answers every request so."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": "0", **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def prepare(hub: str, folder: Path, offline: int = 0) -> subprocess.CompletedProcess[str]:
    words = ["prepare", "demo", "--num-samples", "16", "--vae", "some/vae", "--out", folder / "out"]
    return subprocess.run(
        [sys.executable, "-m", "ahpa_scale.cli", *map(str, words)],
        env={**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(folder)}
        | {"HF_HUB_OFFLINE": str(offline)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_hub_that_is_down_for_now_asks_for_another_try(tmp_path):
    with answering(503) as hub:
        done = prepare(hub, tmp_path)
    assert done.returncode == TRY_AGAIN == 75, done.stderr
    assert done.stderr.splitlines()[-1] == (
        "error: cannot load the VAE 'some/vae': the hub does not answer; "
        "try again, or name a local copy"
    )
    assert not (tmp_path / "out").exists()


def test_a_name_that_the_hub_does_not_know_is_a_mistake(tmp_path):
    with answering(404, X_Error_Code="RepoNotFound") as hub:
        done = prepare(hub, tmp_path)
    assert done.returncode == 2, done.stderr
    assert "error: cannot load a VAE from 'some/vae': it is not a local folder" in done.stderr


def test_a_hub_that_the_user_switched_off_is_not_asked_again(tmp_path):
    with answering(200) as hub:
        done = prepare(hub, tmp_path, offline=1)
    assert done.returncode == 2, done.stderr
    assert "error: cannot load a VAE from 'some/vae'" in done.stderr


def failure(act: Callable[[], object]) -> Exception:
    """What it raises, behind an error of a library's own."""
    try:
        try:
            act()
        except Exception:
            # As libraries do: what happened first is only in the context.
            raise OSError("no file named config.json")  # noqa: B904
    except OSError as error:
        return error
    pytest.fail("nothing was raised")


def test_refused_connections_timeouts_and_unknown_hosts_are_told_from_refusals():
    (port,) = free_ports(1)
    assert is_unreachable(failure(lambda: requests.get(f"http://127.0.0.1:{port}", timeout=60)))
    assert is_unreachable(failure(lambda: requests.get("http://no-such-host.invalid", timeout=60)))
    for status in (429, 500, 503):
        with answering(status) as url:
            assert is_unreachable(failure(requests.get(url, timeout=60).raise_for_status))
    for status in (401, 403, 404):
        with answering(status) as url:
            assert not is_unreachable(failure(requests.get(url, timeout=60).raise_for_status))
    assert not is_unreachable(FileNotFoundError("x"))
    ring = ValueError("a")
    ring.__context__ = KeyError("b")
    ring.__context__.__context__ = ring
    assert not is_unreachable(ring)


def test_a_job_ends_with_the_code_that_asks_for_another_try(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as ended, exit_on_user_error():
        raise UnreachableError("the hub does not answer")
    assert ended.value.code == TRY_AGAIN
    assert capsys.readouterr().err == "error: the hub does not answer\n"
