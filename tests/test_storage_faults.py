# SPDX-License-Identifier: Apache-2.0
"""Stores that refuse, fail or lie: what could not be asked is never taken for what is not there."""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import s3fs
from fault_proxy import FaultProxy, Faults
from s3_server import BUCKET, free_ports

from ahpa_scale import storage
from ahpa_scale.storage import patience
from ahpa_scale.unreachable import UnreachableError

#: Each asks a store for what it may take for an answer that there is nothing.
QUESTIONS = (storage.exists, storage.find, storage.read_bytes)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(storage.PATIENCE, "0.5")


@pytest.mark.parametrize("ask", QUESTIONS)
@pytest.mark.parametrize("status", ["401", "403"])
def test_a_refusal_is_no_answer_and_is_not_repeated(
    ask: Callable[[str], object], status: str, proxy: FaultProxy, url: str
):
    storage.write_text(f"{url}/there", "1")
    proxy.set(Faults(share=1.0, kinds=(status,)))
    with pytest.raises(storage.RefusedError, match=f"cannot use {url}") as caught:
        ask(url)
    assert "\n" not in str(caught.value)
    assert proxy.counts["requests"] <= 2


@pytest.mark.parametrize("ask", [*QUESTIONS, storage.remove])
def test_a_bucket_that_is_not_there_is_no_empty_folder(
    ask: Callable[[str], object], proxy: FaultProxy
):
    with pytest.raises(storage.RefusedError, match="s3://no-such-bucket/a"):
        ask("s3://no-such-bucket/a")
    assert proxy.counts["requests"] <= 3


def test_a_slow_line_takes_an_upload_at_its_first_attempt(
    proxy: FaultProxy,
    url: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    """s3fs waits 15 seconds for an answer, by itself and from where the system has taken a part to
    send; here the parts that s3fs would send at once take 30.
    """
    monkeypatch.setenv(storage.PATIENCE, "100")
    content = bytes(range(256)) * (1 << 17)
    local = tmp_path / "large"
    local.write_bytes(content)
    proxy.set(Faults(put_rate=len(content) / 30))
    storage.put_file(local, f"{url}/large")
    assert not caplog.records
    proxy.set()
    assert storage.read_bytes(f"{url}/large") == content


@pytest.mark.parametrize("ask", QUESTIONS)
@pytest.mark.parametrize("kind", ["500", "503", "429", "cut"])
def test_a_store_that_is_away_is_asked_again_and_then_unreachable(
    ask: Callable[[str], object], kind: str, proxy: FaultProxy, url: str, soon: None
):
    storage.write_text(f"{url}/there", "1")
    proxy.set(Faults(share=1.0, kinds=(kind,)))
    with pytest.raises(UnreachableError, match=rf"{url} does not answer: .*attempts"):
        ask(url)


def test_an_outage_that_ends_is_ridden_out(proxy: FaultProxy, url: str):
    storage.write_text(f"{url}/a/there", "12")
    proxy.set(Faults(share=1.0))
    over = threading.Timer(2.0, proxy.set)
    over.start()
    assert storage.find(url) == {"a/there": 2}
    over.join()


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch, soon: None) -> Iterator[str]:
    """The URL of a folder in a store that accepts connections, and neither reads nor answers."""
    monkeypatch.setattr(patience, "_ATTEMPT", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("S3_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        yield f"s3://{BUCKET}/a"


def test_a_store_that_never_answers_costs_no_more_than_patience(silent: str, tmp_path: Path):
    """A file is more than a connection's buffers take."""
    (tmp_path / "file").write_bytes(bytes(32 << 20))
    for act in (
        *QUESTIONS,
        lambda url: storage.write_bytes(url, b"1"),
        lambda url: storage.put_file(tmp_path / "file", url),
        lambda url: storage.get_file(url, tmp_path / "copy"),
    ):
        begun = time.monotonic()
        with pytest.raises(UnreachableError, match=f"{silent} does not answer: nothing moved for"):
            act(silent)
        assert time.monotonic() - begun < 14, "a client's own timeout is 15 s"


def test_a_slow_store_is_waited_for_while_bytes_move(monkeypatch: pytest.MonkeyPatch, soon: None):
    monkeypatch.setattr(patience, "_ATTEMPT", 1.0)

    def act(progress: patience.Progress) -> str:
        for _ in range(12):
            time.sleep(0.2)
            progress.note()
        return "all"

    assert patience.patiently("s3://a", act) == "all"


def test_those_who_come_back_by_themselves_ask_once(proxy: FaultProxy, url: str):
    proxy.set(Faults(share=1.0, kinds=("503",)))
    with pytest.raises(UnreachableError), storage.asking_once():
        storage.exists(url)
    assert proxy.counts["requests"] <= 3


def test_missing_credentials_are_the_users_to_mend(proxy: FaultProxy, url: str, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(storage.RefusedError, match="credentials"):
        storage.find(url)
    s3fs.S3FileSystem.clear_instance_cache()


def test_an_endpoint_that_is_no_url_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("S3_ENDPOINT_URL", "minio:9000")
    with pytest.raises(ValueError, match="S3_ENDPOINT_URL is 'minio:9000': write https://minio"):
        storage.find(f"s3://{BUCKET}/a")


def test_tls_to_a_port_that_speaks_http_is_the_users_to_mend(
    proxy: FaultProxy, url: str, soon: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("S3_ENDPOINT_URL", proxy.url.replace("http://", "https://"))
    with pytest.raises(storage.RefusedError, match=r"(?i)wrong.version.number|http.request"):
        storage.find(url)


def test_a_hub_that_the_user_switched_off_is_not_asked_again():
    with pytest.raises(storage.RefusedError, match="offline mode is enabled"):
        storage.find("hf://some/name/x")


def test_a_host_that_connects_when_it_is_opened_is_asked_like_others(monkeypatch):
    monkeypatch.setenv(storage.PATIENCE, "0")
    (port,) = free_ports(1)
    with pytest.raises(UnreachableError, match="sftp://"):
        storage.find(f"sftp://127.0.0.1:{port}/x")


def test_a_fault_of_ours_keeps_its_type(proxy: FaultProxy, url: str, monkeypatch):
    async def broken(self: object, path: str, **_: object) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr(s3fs.S3FileSystem, "_cat_file", broken)
    with pytest.raises(TypeError, match="a bug"):
        storage.read_bytes(url)


def test_a_full_disk_is_not_the_stores_fault(proxy: FaultProxy, url: str):
    storage.write_bytes(url, bytes(1 << 16))
    proxy.set()
    with pytest.raises(OSError, match="No space") as caught:
        storage.get_file(url, Path("/dev/full"))
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == "/dev/full"
    assert proxy.counts["requests"] == 1, "it was tried again"


def test_a_local_folder_that_cannot_be_listed_is_not_empty(tmp_path: Path):
    (tmp_path / "file").write_text("1")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("file", "loop"):
        with pytest.raises(OSError, match=name):
            storage.find(tmp_path / name)
    assert storage.find(tmp_path / "nothing") == {}


def test_a_chain_of_urls_reads_through_its_cache(proxy: FaultProxy, url: str):
    storage.write_text(f"{url}/a/there", "12")
    chained = f"simplecache::{url}"
    assert storage.find(chained) == {"a/there": 2}
    assert storage.read_text(storage.join(chained, "a", "there")) == "12"
    assert not storage.exists(storage.join(chained, "b"))


@contextmanager
def web_server(pages: dict[str, tuple[int, bytes, int]]) -> Iterator[str]:
    """The URL of a server that answers each path so: status, body, and the length that it tells."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            status, body, length = pages.get(self.path, (404, b"", 0))
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_GET = do_HEAD

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_web_server(tmp_path: Path, soon: None):
    links = b'<a href="a">a</a> <a href="short">short</a> <a href="?C=N;O=D">Name</a>'
    pages = {
        "/set": (200, links, len(links)),
        "/set/": (200, links, len(links)),
        "/set/a": (200, b"123", 3),
        "/set/short": (200, b"12", 5),
        "/secret?key=1": (200, b"4567", 4),
        "/away/": (503, b"", 0),
        "/away": (503, b"", 0),
        "/forbidden": (403, b"", 0),
    }
    with web_server(pages) as host:
        assert storage.find(f"{host}/set") == {"a": 3, "short": 5}
        assert storage.read_bytes(f"{host}/set/a") == b"123"
        assert storage.read_bytes(f"{host}/secret?key=1") == b"4567"
        assert not storage.exists(f"{host}/nothing")
        assert storage.find(f"{host}/nothing") == {}
        for ask in QUESTIONS:
            with pytest.raises(UnreachableError, match="/away does not answer"):
                ask(f"{host}/away")
            with pytest.raises(storage.RefusedError, match="/forbidden"):
                ask(f"{host}/forbidden")
        with pytest.raises(UnreachableError, match="/set/short does not answer"):
            storage.get_file(f"{host}/set/short", tmp_path / "short")
        with pytest.raises(UnreachableError, match="/set/short does not answer"):
            storage.read_bytes(f"{host}/set/short")
    started = time.monotonic()
    with pytest.raises(UnreachableError, match="/set/a does not answer"):
        storage.read_bytes(f"{host}/set/a")
    assert time.monotonic() - started >= 0.5


def test_new_files_have_the_rights_of_the_mask_which_is_never_set(tmp_path: Path, monkeypatch):
    def refuse(mask: int) -> int:
        pytest.fail("other threads would make files without a mask meanwhile")

    (tmp_path / "usual").write_text("")
    monkeypatch.setattr("os.umask", refuse)
    storage.write_text(tmp_path / "ours", "1")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode
