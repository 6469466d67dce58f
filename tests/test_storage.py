# SPDX-License-Identifier: Apache-2.0
"""Storage through its public functions: local disk, and a real S3 server on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from s3_server import BUCKET, S3Server, s3_server

from ahpa_scale import storage
from ahpa_scale.errors import UserError


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def s3(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server


def test_a_local_file_comes_back(tmp_path):
    url = storage.join(tmp_path, "deep", "er", "file.txt")
    assert not storage.exists(url)
    storage.write_text(url, "été")
    assert storage.exists(url)
    assert storage.read_text(f"file://{url}") == "été"
    assert storage.read_bytes(url) == "été".encode()
    assert os.listdir(Path(url).parent) == ["file.txt"]
    storage.remove(url)
    storage.remove(url)
    assert not storage.exists(url)


def test_a_reader_sees_the_old_or_the_new_text_never_a_part(tmp_path):
    path = tmp_path / "file"
    texts = {letter * 200_000 for letter in "ab"}
    storage.write_text(path, min(texts))
    seen, done = set(), threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(storage.read_text(path))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        for text in sorted(texts):
            storage.write_text(path, text)
    done.set()
    reader.join()
    assert seen <= texts


def test_a_failed_write_leaves_the_old_content_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "file"
    storage.write_text(path, "old")

    def refuse(source: object, target: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        storage.write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("url", "kind", "joined"),
    [
        ("/a/b", "", "/a/b/c/d"),
        ("file:///a/b", "", "/a/b/c/d"),
        ("s3://bucket/a/", "s3", "s3://bucket/a/c/d"),
        ("GS://bucket", "gs", "GS://bucket/c/d"),
        ("https://host/a?key=1", "https", "https://host/a/c/d?key=1"),
        ("abfs://box@account.host/a", "abfs", "abfs://box@account.host/a/c/d"),
        ("simplecache::s3://bucket/a", "s3", "simplecache::s3://bucket/a/c/d"),
        ("zip://a::s3://bucket/b.zip", "zip", "zip://a/c/d::s3://bucket/b.zip"),
    ],
)
def test_urls(url, kind, joined):
    assert storage.scheme(url) == kind
    assert storage.is_remote(url) == bool(kind)
    assert storage.join(url, "c", "d") == joined


@pytest.mark.parametrize(
    ("url", "module", "advice"),
    [
        ("gs://b/x", "gcsfs", r"ahpa-scale\[gcs\]"),
        ("az://b/x", "adlfs", r"ahpa-scale\[azure\]"),
    ],
)
def test_a_missing_package_names_what_to_install(url, module, advice, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=advice) as caught:
        storage.exists(url)
    assert "\n" not in str(caught.value)


def test_an_unknown_scheme_is_one_line():
    with pytest.raises(ValueError, match="unknown storage scheme ftpp://"):
        storage.read_text("ftpp://host/x")


def test_an_atomic_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "out"

    def fail_halfway() -> None:
        with storage.atomic_folder(target) as room:
            (room / "part").write_text("1")
            assert not target.exists()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert os.listdir(tmp_path) == []
    with storage.atomic_folder(target) as room:
        (room / "part").write_text("2")
    with pytest.raises(FileExistsError, match="exists already"), storage.atomic_folder(target):
        pass
    with storage.atomic_folder(target, replace=True) as room:
        (room / "other").write_text("3")
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(target) == ["other"]


def test_leftovers_of_a_killed_process_go_and_those_of_a_living_one_stay(tmp_path):
    target = tmp_path / "out"
    script = (
        "import sys, time; from ahpa_scale.storage import atomic_folder\n"
        f"with atomic_folder({str(target)!r}) as room:\n"
        "    (room / 'part').write_text('1'); print('in', flush=True); time.sleep(600)\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) for _ in range(2)
    ]
    try:
        for process in processes:
            assert process.stdout.readline() == b"in\n"
        processes[0].kill()
        processes[0].wait()
        assert len(os.listdir(tmp_path)) == 2
        with storage.atomic_folder(target) as room:
            (room / "whole").write_text("2")
        names = sorted(os.listdir(tmp_path))
        assert len(names) == 2
        assert names[1] == "out"
        assert os.listdir(target) == ["whole"]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_s3_objects_come_back_and_are_plain_objects(s3):
    url = f"s3://{BUCKET}/some/where/text.json"
    assert not storage.exists(url)
    with pytest.raises(FileNotFoundError, match="nothing at s3://"):
        storage.read_text(url)
    storage.write_text(url, "one")
    storage.write_text(url, "two")
    assert storage.read_text(url) == "two"
    assert s3.keys("some") == ["some/where/text.json"]
    # Another process's write is seen: nothing is cached.
    s3.client().put_object(Bucket=BUCKET, Key="some/where/text.json", Body=b"three")
    assert storage.read_bytes(url) == b"three"
    s3.client().delete_object(Bucket=BUCKET, Key="some/where/text.json")
    assert not storage.exists(url)
    storage.remove(url)


def test_a_large_s3_object_comes_back(s3):
    content = os.urandom(1 << 20) * 12
    storage.write_bytes(f"s3://{BUCKET}/large", content)
    assert storage.read_bytes(f"s3://{BUCKET}/large") == content
    storage.remove(f"s3://{BUCKET}/large")


def test_a_wrong_secret_is_refused_in_one_line(s3, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    for refused in (storage.read_text, storage.exists, storage.find, storage.remove):
        with pytest.raises(storage.RefusedError, match="s3://bucket/x") as caught:
            refused(f"s3://{BUCKET}/x")
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="s3://bucket/x"):
        storage.write_text(f"s3://{BUCKET}/x", "1")
    s3fs.S3FileSystem.clear_instance_cache()


def test_storage_and_card_import_without_torch_and_fsspec():
    code = (
        "import sys, ahpa_scale.storage, ahpa_scale.data.card, ahpa_scale.data.settings\n"
        "heavy = {'torch', 'fsspec', 'composer', 'diffusers', 'streaming', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
