# SPDX-License-Identifier: Apache-2.0
"""Training on two hosts: the losses of one host, and an end with a message for what goes wrong."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from job import BIN, CLI, run
from two_hosts import Running, TwoHosts, two_hosts, why_not

PORT = "29507"
LONG = 50
QUICK = {
    "device": "cpu",
    "precision": "fp32",
    "max_duration": f"{LONG}ba",
    "global_train_batch_size": "32",
    "model.depth": "2",
    "alignment.tap": "1",
    "alignment.head.width": "32",
    "optimizer.warmup": "0ba",
    "data.num_workers": "1",
    "checkpoint.save_folder": "null",
    "checkpoint.save_interval": "5000ba",
    "checkpoint.keep": "null",
    "logging.interval": "1ba",
    "sampling.interval": "null",
    "sampling.guidance_scale": "1.0",
}
#: Each engine and the overrides that choose it.
ENGINES: dict[str, dict[str, str]] = {
    "ddp": {},
    "fsdp2": {"parallelism.engine": "fsdp2"},
    "zero2": {"parallelism.engine": "zero2"},
}


@pytest.fixture(scope="module")
def data(demo_data) -> Path:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    return demo_data(256)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[TwoHosts]:
    with two_hosts(tmp_path) as joined:
        yield joined


def arguments(data: Path, folder: Path, chosen: dict[str, str]) -> list[str]:
    places = {"data.local": str(data), "output_dir": str(folder / "run")}
    items = {**QUICK, **places, **chosen}
    return ["train.py", "yamls/demo-ahpa.yaml", *(f"{key}={items[key]}" for key in items)]


def start(hosts: TwoHosts, data: Path, folder: Path, **chosen: str) -> list[Running]:
    """Starts a run as Kubeflow would: one pod on each host."""
    keys = {key.replace("__", "."): value for key, value in chosen.items()}
    return [
        host.start(
            CLI, "launch", *arguments(data, folder, keys),
            environment={
                "PET_NNODES": "2",
                "PET_NPROC_PER_NODE": "1",
                "PET_NODE_RANK": str(host.number),
                "PET_MASTER_ADDR": hosts.hosts[0].address,
                "PET_MASTER_PORT": PORT,
            },
        )
        for host in hosts.hosts
    ]  # fmt: skip


def rows(folder: Path) -> list[dict[str, Any]]:
    metrics = folder / "run" / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return [json.loads(line) for line in lines]


def wait_for_batch(running: list[Running], hosts: TwoHosts, folder: Path, batch: int) -> None:
    until = time.monotonic() + 900
    while not any(row["batch"] >= batch for row in rows(folder)):
        assert time.monotonic() < until, hosts.logs()
        assert all(one.process.poll() is None for one in running), hosts.logs()
        time.sleep(0.1)


def assert_equal_losses(folder: Path, reference: list[dict[str, Any]], batches: int) -> None:
    found = rows(folder)
    assert [row["batch"] for row in found] == list(range(1, batches + 1))
    for one, two in zip(found, reference, strict=False):
        for key in ("loss/train/flow", "loss/train/alignment", "loss/train/total"):
            assert one[key] == pytest.approx(two[key], rel=1e-6), (one["batch"], key)


@pytest.fixture(scope="module")
def one_host(data: Path, tmp_path_factory) -> dict[str, list[dict[str, Any]]]:
    """The losses of two ranks on one host, by engine."""
    losses = {}
    for engine, chosen in ENGINES.items():
        folder = tmp_path_factory.mktemp(engine)
        done = run(BIN / "composer", "-n", 2, *arguments(data, folder, chosen))
        assert done.returncode == 0, done.stdout + done.stderr
        losses[engine] = rows(folder)
    return losses


@pytest.mark.parametrize("engine", ENGINES)
def test_two_hosts_train_to_the_losses_of_one(hosts, data, one_host, tmp_path, engine):
    running = start(hosts, data, tmp_path, **ENGINES[engine])
    assert [one.wait(900) for one in running] == [0, 0], hosts.logs()
    assert_equal_losses(tmp_path, one_host[engine], LONG)
    assert "Kubeflow: " in hosts.hosts[0].log.read_text()


def test_a_slow_link_changes_nothing_but_the_pace(hosts, data, one_host, tmp_path):
    """Started with Composer's own flags."""
    for host in hosts.hosts:
        host.slow("20mbit")
    flags = ["-n", "1", "--world_size", "2", "--master_addr", hosts.hosts[0].address,
             "--master_port", PORT]  # fmt: skip
    words = arguments(data, tmp_path, {"max_duration": "12ba"})
    running = [
        host.start(BIN / "composer", *flags, "--node_rank", host.number, *words)
        for host in hosts.hosts
    ]
    assert [one.wait(900) for one in running] == [0, 0], hosts.logs()
    assert_equal_losses(tmp_path, one_host["ddp"], 12)


@pytest.mark.parametrize("engine", ["fsdp2", "zero2"])
def test_a_host_that_is_killed_ends_the_other_and_both_resume(
    hosts, data, one_host, tmp_path, engine
):
    saved = {
        **ENGINES[engine],
        "checkpoint__save_folder": str(tmp_path / "checkpoints"),
        "checkpoint__save_interval": "4ba",
        "checkpoint__autoresume": "true",
    }
    survivor, killed = hosts.hosts
    running = start(hosts, data, tmp_path, **saved, max_duration="100000ba")
    wait_for_batch(running, hosts, tmp_path, 6)
    begun = time.monotonic()
    killed.kill()
    code = running[0].wait(600)
    took = time.monotonic() - begun
    assert code == 75, hosts.logs()
    assert re.search(
        r"^error: rank 1 on host-b \(node 1\) has not been heard from for \d+ s; last seen at "
        r"batch \d+: \w+$",
        survivor.log.read_text(),
        re.MULTILINE,
    ), hosts.logs()
    assert took > 25
    print(f"from kill to end: {took:.1f} s")
    running[1].wait(600)
    last = rows(tmp_path)[-1]["batch"]
    again = start(hosts, data, tmp_path, **saved, max_duration=f"{last + 2}ba")
    assert [one.wait(900) for one in again] == [0, 0], hosts.logs()
    found = {row["batch"]: row["loss/train/total"] for row in rows(tmp_path)}
    assert max(found) == last + 2
    for row in one_host[engine]:
        if row["batch"] in found:
            assert found[row["batch"]] == pytest.approx(row["loss/train/total"], rel=1e-6)


def test_a_link_that_comes_back_disturbs_nobody(hosts, data, one_host, tmp_path):
    running = start(hosts, data, tmp_path)
    wait_for_batch(running, hosts, tmp_path, 3)
    hosts.hosts[1].link("down")
    # What had crossed the link before may still be written.
    before, now = -1, 0
    for _ in range(3):
        if before != now:
            before = len(rows(tmp_path))
            time.sleep(4)
            now = len(rows(tmp_path))
    assert before == now < LONG, "the link was not down"
    hosts.hosts[1].link("up")
    assert [one.wait(900) for one in running] == [0, 0], hosts.logs()
    assert_equal_losses(tmp_path, one_host["ddp"], LONG)


def test_a_link_that_stays_down_ends_both(hosts, data, tmp_path):
    running = start(hosts, data, tmp_path, max_duration="100000ba", watch__silence="15")
    wait_for_batch(running, hosts, tmp_path, 3)
    hosts.hosts[1].link("down")
    assert [one.wait(600) for one in running] == [75, 75], hosts.logs()
    for host, other in zip(hosts.hosts, reversed(hosts.hosts), strict=True):
        assert re.search(
            rf"^error: rank {other.number} on {other.name} \(node {other.number}\) has not been "
            r"heard from for \d+ s; last seen at batch \d+: \w+$",
            host.log.read_text(),
            re.MULTILINE,
        ), hosts.logs()
