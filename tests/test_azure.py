# SPDX-License-Identifier: Apache-2.0
"""Data and checkpoints in Azure's blob store: a real server on loopback, at times a bad one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch
from azure_server import CONTAINER, KEY, AzureServer, azure_server, missing
from fault_proxy import FaultProxy, Faults
from job import CLI, FASTEST, run

from ahpa_scale import storage
from ahpa_scale.data.prepare import prepare
from ahpa_scale.data.stream import build_loader

if missing():
    pytest.skip(str(missing()), allow_module_level=True)

COUNT = 200


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[AzureServer]:
    with azure_server(tmp_path_factory.mktemp("azure")) as running:
        yield running


@pytest.fixture
def at(server, monkeypatch):
    """Lets this process find the server as told."""

    def find(endpoint: str | None = None, key: str = KEY) -> None:
        for name, value in server.environment(endpoint, key).items():
            monkeypatch.setenv(name, value)
        # fsspec keeps a file system for the settings that it was made with.
        fsspec.get_filesystem_class("az").clear_instance_cache()

    yield find
    fsspec.get_filesystem_class("az").clear_instance_cache()


def test_a_set_is_written_and_read_whole_while_requests_fail(server, at, vae_path, tmp_path):
    options = {"vae_path": vae_path, "size": 16, "num_samples": COUNT, "progress": False}
    here, there = str(tmp_path / "set"), f"az://{CONTAINER}/flaky/set"
    expected = prepare("demo", here, shard_size="20kb", **options)
    with FaultProxy(server.endpoint, seed=1, faults=Faults(share=0.05)) as proxy:
        at(proxy.url)
        card = prepare("demo", there, shard_size="20kb", **options)
        assert card.fingerprint == expected.fingerprint
        found = list(build_loader(there, batch_size=8, local=str(tmp_path / "cache")))
        failed = sum(count for kind, count in proxy.counts.items() if kind != "requests")
        assert failed > 0
    local = list(build_loader(here, batch_size=8))
    for mine, theirs in zip(local, found, strict=True):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert sorted(int(i) for batch in found for i in batch["index"]) == list(range(COUNT))


def test_a_run_reads_from_and_saves_to_the_store_and_goes_on(server, tmp_path):
    with FaultProxy(server.endpoint, seed=2, faults=Faults(share=0.05)) as proxy:
        environment = server.environment(proxy.url)

        def train(name: str, *overrides: str) -> subprocess.CompletedProcess[str]:
            items = {
                "data.remote": f"az://{CONTAINER}/demo",
                "data.local": tmp_path / name / "cache",
                "data.num_workers": 1,
                "output_dir": tmp_path / name / "run",
                "checkpoint.save_folder": f"az://{CONTAINER}/checkpoints/demo",
                "checkpoint.save_interval": "2ba",
                "logging.interval": "1ba",
                "optimizer.warmup": "0ba",
                "sampling.interval": "null",
                "precision": FASTEST,
                "model.input_size": "null",
                "model.in_channels": "null",
                "model.num_classes": "null",
            }
            chosen = [f"{key}={value}" for key, value in items.items()]
            command = [sys.executable, "train.py", "yamls/demo-ahpa.yaml", *chosen, *overrides]
            return run(*command, environment=environment)

        sizes = ["--size", "32", "--num-samples", "256", "--no-progress"]
        where = ["--out", f"az://{CONTAINER}/demo"]
        done = run(CLI, "prepare", "demo", *sizes, *where, environment=environment)
        assert done.returncode == 0, done.stderr
        first = train("first", "max_duration=2ba")
        assert first.returncode == 0, first.stderr
        assert any(name.startswith("checkpoints/demo/ba2") for name in server.names())
        second = train("second", "max_duration=4ba", "checkpoint.autoresume=true")
        assert second.returncode == 0, second.stderr
    rows = (tmp_path / "second/run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["batch"] for row in rows] == [3, 4]
    saved = Path(tmp_path / "second/run/config.yaml").read_text()
    assert "input_size: 8" in saved
    assert "num_classes: 8" in saved


def test_a_store_that_refuses_or_is_away_is_one_line(server, at, monkeypatch):
    url = f"az://{CONTAINER}/x"
    at(key=KEY.replace("Eby8", "Eby9"))
    with pytest.raises(storage.RefusedError, match="failed to authenticate") as refused:
        storage.read_bytes(url)
    assert "<?xml" not in str(refused.value)
    at()
    with pytest.raises(storage.RefusedError, match="The specified container does not exist"):
        storage.write_bytes("az://nobody/x", b"")
    monkeypatch.setenv(storage.PATIENCE, "0")
    at("http://127.0.0.1:9")
    with pytest.raises(storage.UnreachableError, match="does not answer: Cannot connect"):
        storage.read_bytes(url)
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING")
    fsspec.get_filesystem_class("az").clear_instance_cache()
    with pytest.raises(storage.RefusedError, match="connection_string or account_name"):
        storage.read_bytes(url)
