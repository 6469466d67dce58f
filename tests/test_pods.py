# SPDX-License-Identifier: Apache-2.0
"""The CPU overlay, rendered by kubectl and run for real: two pods, an object store, a network.

What a user would change is changed in the ConfigMap alone, to make the run short. The pods'
commands, variables, volumes, names and rights are the manifests'.
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from image import Image
from job import FASTEST
from k8s_manifests import overlay
from pod_job import IndexedJob
from pod_store import KEY, SECRET, Store
from podman import network, podman
from pods import Node

from ahpa_scale.exits import PREEMPTED
from ahpa_scale.exits import TRY_AGAIN as LOST

BATCHES, INTERVAL = 48, 8
SHORT = {
    "max_duration": f"{BATCHES}ba",
    "global_train_batch_size": 16,
    "precision": FASTEST,
    "sampling": {"interval": None},
    "watch": {"silence": 5},
    "logging": {"interval": "1ba", "router_interval": "10ba"},
}

MakeJob = Callable[..., IndexedJob]


@pytest.fixture(scope="module")
def store(image: Image) -> Iterator[Store]:
    """An object store with the demo's data, made by the image's target `prepare`."""
    label = f"ahpa-{uuid.uuid4().hex[:8]}"
    with network(label) as net, contextlib.closing(Store(label, image, net)) as found:
        flags = ["--network", net, "--rm", "--read-only", "--tmpfs=/tmp:rw,mode=1777"]
        flags += [w for k, v in found.credentials.items() for w in ("--env", f"{k}={v}")]
        words = ["demo", "--size", "32", "--num-samples", "256", "--out"]
        words += [f"s3://{found.bucket}/demo-data", "--no-progress"]
        podman("run", *flags, *image.flags, image.prepare, *words)
        yield found


@pytest.fixture
def make_job(image: Image, store: Store, tmp_path: Path) -> Iterator[MakeJob]:
    """Makes the overlay's Job, with an empty folder of checkpoints."""
    jobs: list[IndexedJob] = []

    def make(**changes: Any) -> IndexedJob:
        docs = overlay("cpu")
        (job,) = (doc for doc in docs if doc["kind"] == "Job")
        (config,) = (doc for doc in docs if doc["kind"] == "ConfigMap")
        data = {name: _changed(text, changes) for name, text in config["data"].items()}
        objects = {
            ("ConfigMap", config["metadata"]["name"]): data,
            ("Secret", "ahpa-scale-credentials"): store.credentials,
        }
        label = f"{store.network}-{len(jobs)}"
        node = Node(store.network, tmp_path / str(len(jobs)), objects, image.flags)
        jobs.append(IndexedJob(job, node, label))
        return jobs[-1]

    store.forget_checkpoints()
    yield make
    for job in jobs:
        job.delete()
    store.forget_checkpoints()


def _changed(text: str, changes: dict[str, Any]) -> str:
    config = yaml.safe_load(text) | SHORT | changes
    config["optimizer"]["warmup"] = "10ba"
    config["checkpoint"]["save_interval"] = f"{INTERVAL}ba"
    return yaml.safe_dump(config)


def losses(job: IndexedJob) -> dict[int, dict[str, float]]:
    """Batch -> its losses, over all pods that were node 0, each with a disk of its own."""
    found: dict[int, dict[str, float]] = {}
    for pod in [*job.ended, *job.pods.values()]:
        path = pod.folder / "local/run/metrics.jsonl"
        for line in path.read_text().splitlines() if path.exists() else ():
            row = json.loads(line)
            values = {key: row[key] for key in row if key.startswith("loss/")}
            assert found.setdefault(row["batch"], values) == values, row["batch"]
    return found


def assert_no_secret(job: IndexedJob) -> None:
    """Neither logs nor volumes hold it; a container's variables do, as in Kubernetes."""
    for pod in [*job.ended, *job.pods.values()]:
        texts = [pod.log().encode()]
        texts += [path.read_bytes() for path in pod.folder.rglob("*") if path.is_file()]
        assert len(texts) > 1
        assert texts[0]
        assert not [text for text in texts if SECRET.encode() in text or KEY.encode() in text]


def assert_watched(job: IndexedJob) -> None:
    """Probes pass, Prometheus' page tells of the training, and every line of ours is an object."""
    for index, pod in job.pods.items():
        assert (pod.probe("startupProbe"), pod.probe("livenessProbe")) == (200, 200)
        status, page = pod.get("metrics", "/metrics")
        assert status == 200
        assert "ahpa_batch " in page
        lines = [json.loads(line) for line in pod.log().splitlines() if line.startswith("{")]
        assert lines
        assert {line["node"] for line in lines} == {index}


def finish(job: IndexedJob) -> dict[int, dict[str, float]]:
    """Runs a job to its good end, and returns its losses."""
    job.run()
    assert job.state == "Complete", [pod.message() for pod in job.ended]
    assert_no_secret(job)
    found = losses(job)
    assert sorted(found) == list(range(1, BATCHES + 1))
    return found


@pytest.fixture(scope="module")
def undisturbed(image: Image, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Losses of a run that nothing happens to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with contextlib.contextmanager(make_job.__wrapped__)(image, store, folder) as make:
        job = make()
        found = finish(job)
        assert [end for _, end, _ in job.ends] == [0, 0]
        assert store.batches()[-1] == BATCHES
    return found


def test_a_pod_is_killed_another_evicted_and_all_go_on(store, make_job, undisturbed):
    job = make_job()
    job.run(until=lambda: len(store.batches()) >= 1)
    assert_watched(job)
    job.pods[1].kill()
    job.run(until=lambda: len(job.ends) == 2)
    ends = {(index, code): action for index, code, action in job.ends}
    assert ends == {(1, 137): "Count", (0, LOST): "Ignore"}
    lost = next(pod for pod in job.ended if pod.exit_code() == LOST)
    assert "rank 1" in lost.message()

    before = store.batches()[-1]
    job.run(until=lambda: store.batches()[-1] > before)
    before, begun = store.batches()[-1], time.monotonic()
    grace = job.pods[0].grace
    job.evict(0)
    took = time.monotonic() - begun
    assert store.batches()[-1] > before
    assert took < grace / 2
    print(f"saved batch {store.batches()[-1]}, and gone {took:.1f} s after SIGTERM")

    assert finish(job) == undisturbed
    codes = [(code, action) for _, code, action in job.ends[2:]]
    assert codes == [(PREEMPTED, "Ignore")] * 2 + [(0, "Complete")] * 2


def test_a_mistake_in_the_configuration_fails_the_job_at_once(store, make_job):
    job = make_job(modle={"name": "tiny/2"})
    job.run()
    assert job.state == "Failed"
    assert (job.ends[0][1], job.ends[0][2]) == (2, "FailJob")
    assert "modle" in job.ended[0].message()
    assert store.batches() == []
