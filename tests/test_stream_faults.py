# SPDX-License-Identifier: Apache-2.0
"""Data sets that lie in bad stores, lack shards, or have a spoiled cache: the same with workers and
without.
"""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from data_sets import COUNT, batches, everything
from fault_proxy import ALWAYS, FaultProxy, Faults
from s3_server import BUCKET, S3Server

from ahpa_scale import storage
from ahpa_scale.data.card import CARD_NAME, read_card, write_card
from ahpa_scale.data.index import INDEX_NAME, index_digest
from ahpa_scale.data.prepare import prepare
from ahpa_scale.data.stream import build_loader
from ahpa_scale.data.whole import ShardError
from ahpa_scale.unreachable import UnreachableError

WORKERS = pytest.mark.parametrize("num_workers", [0, 2])


@pytest.fixture
def stored(prepared: str, server: S3Server, proxy: FaultProxy, url: str, tmp_path: Path) -> str:
    """The data set in a store behind the proxy."""
    for path in Path(prepared).iterdir():
        server.client().upload_file(str(path), BUCKET, f"{tmp_path.name}/{path.name}")
    return url


def all_samples(remote: str, cache: Path, **options: object) -> list[int]:
    found = batches(remote, local=str(cache), **options)
    return sorted(everything(found, "index").tolist())


@WORKERS
def test_an_outage_of_the_store_is_ridden_out(
    stored: str, proxy: FaultProxy, tmp_path: Path, num_workers: int
):
    loader = build_loader(
        stored, local=str(tmp_path / "cache"), batch_size=4, num_workers=num_workers
    )
    proxy.set(Faults(share=1.0))
    over = threading.Timer(3.0, proxy.set)
    over.start()
    assert sorted(everything(list(loader), "index").tolist()) == list(range(COUNT))
    over.join()


@WORKERS
@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [("503", UnreachableError, "does not answer"), ("403", storage.RefusedError, "cannot use")],
)
def test_an_outage_that_lasts_and_a_refusal_keep_their_kind_and_name_the_url(
    stored: str,
    proxy: FaultProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    num_workers: int,
    status: str,
    kind: type[Exception],
    says: str,
):
    loader = build_loader(
        stored, local=str(tmp_path / "cache"), batch_size=4, num_workers=num_workers
    )
    monkeypatch.setenv(storage.PATIENCE, "1")
    proxy.set(Faults(share=1.0, kinds=(status,)))
    with pytest.raises(kind) as caught:
        list(loader)
    assert type(caught.value) is kind
    assert f"{stored}/shard.0000" in str(caught.value)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_spoiled_cache_is_fetched_again(prepared: str, tmp_path: Path):
    cache = tmp_path / "cache" / read_card(prepared).fingerprint
    everyone = list(range(COUNT))
    assert all_samples(prepared, tmp_path / "cache") == everyone
    shards = sorted(cache.glob("*.mds"))
    whole = shards[1].read_bytes()
    for path in (shards[1], cache / INDEX_NAME):
        path.write_bytes(path.read_bytes()[:-20])
        assert all_samples(prepared, tmp_path / "cache") == everyone
    assert shards[1].read_bytes() == whole
    # And while it is read.
    loader = build_loader(prepared, local=str(tmp_path / "cache"), batch_size=4, num_workers=2)
    shards[1].write_bytes(whole[:100])
    assert sorted(everything(list(loader), "index").tolist()) == everyone
    assert shards[1].read_bytes() == whole


def lacking(folder: Path, name: str) -> Path:
    (folder / name).unlink()
    return folder


def cut(folder: Path, name: str) -> Path:
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    return folder


def in_parts(folder: Path) -> str:
    """Moves a data set's shards to the folders of two parts; the name of one in the second."""
    index = json.loads((folder / INDEX_NAME).read_text())
    for number, shard in enumerate(index["shards"]):
        info = shard["raw_data"]
        name = f"part-{number % 2:05}-of-00002/{info['basename']}"
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / info["basename"]).rename(folder / name)
        info["basename"] = name
    save_index(folder, index)
    return str(index["shards"][1]["raw_data"]["basename"])


def save_index(folder: Path, index: dict) -> None:
    content = json.dumps(index).encode()
    (folder / INDEX_NAME).write_bytes(content)
    write_card(folder, replace(read_card(folder), fingerprint=index_digest(content)))


@pytest.mark.parametrize("spoil", [lacking, cut])
@pytest.mark.parametrize("form", [in_parts, None])
def test_a_shard_that_is_missing_or_cut_short_is_named_at_the_start(
    prepared: str, proxy: FaultProxy, server: S3Server, tmp_path: Path, spoil, form
):
    folder = tmp_path / "set"
    shutil.copytree(prepared, folder)
    name = "shard.00001.mds" if form is None else form(folder)
    assert all_samples(str(folder), tmp_path / "cache") == list(range(COUNT))
    spoil(folder, name)
    for place, options in ((folder, {}), (folder, {"local": str(tmp_path / "other")})):
        with pytest.raises(ShardError, match=f"^{place}/{name} (is missing|has .* instead of)"):
            build_loader(str(place), batch_size=4, **options)
    for path in (path for path in folder.rglob("*") if path.is_file()):
        key = f"{tmp_path.name}/{path.relative_to(folder).as_posix()}"
        server.client().upload_file(str(path), BUCKET, key)
    proxy.set()
    url = f"s3://{BUCKET}/{tmp_path.name}"
    with pytest.raises(ShardError, match=f"^{url}/{name} (is missing|has .* instead of)"):
        build_loader(url, local=str(tmp_path / "third"), batch_size=4)
    assert proxy.counts["requests"] <= 8, "more than the card, the index and one listing"
    assert not list((tmp_path / "third").rglob("*.mds"))


@WORKERS
def test_a_set_on_a_web_server(prepared: str, tmp_path: Path, num_workers: int):
    handler = partial(SimpleHTTPRequestHandler, directory=prepared)
    handler.log_message = lambda *_: None
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, args=(0.05,), daemon=True).start()
        url = f"http://127.0.0.1:{web.server_port}"
        assert storage.exists(f"{url}/{CARD_NAME}")
        found = all_samples(url, tmp_path / "cache", num_workers=num_workers)
        web.shutdown()
    assert found == list(range(COUNT))


def test_preparing_rides_out_an_outage_and_ends_with_one_that_lasts(
    vae_path: str, proxy: FaultProxy, url: str, monkeypatch: pytest.MonkeyPatch
):
    options = {"vae_path": vae_path, "size": 16, "num_samples": 8, "progress": False}
    proxy.set(Faults(cut_uploads=5))
    prepare("demo", f"{url}/a", **options)
    assert proxy.counts["cut upload"] == 5
    assert storage.find(f"{url}/a").keys() >= {"shard.00000.mds", INDEX_NAME, CARD_NAME}
    monkeypatch.setenv(storage.PATIENCE, "1")
    proxy.set(Faults(cut_uploads=ALWAYS, uploads="shard.00000"))
    with pytest.raises(UnreachableError, match=f"{url}/b/shard.00000.mds does not answer"):
        prepare("demo", f"{url}/b", **options)
