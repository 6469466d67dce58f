# SPDX-License-Identifier: Apache-2.0
"""/metrics and /healthz: of a run while it trains, of one that hangs, and when they are refused."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from job import ROOT, run, variables, warmed
from scrape import free_port, get, scrape, values
from test_two_hosts import arguments

import ahpa_scale
from ahpa_scale.config.errors import exit_on_user_error
from ahpa_scale.errors import HostError
from ahpa_scale.exporter import Board, health, serving
from ahpa_scale.run.serve import serve_metrics
from ahpa_scale.watch import Pulse


@pytest.fixture(scope="module")
def data(demo_data) -> Path:
    return demo_data(128)


class Job:
    """A run of one rank in a process of its own, with a port of its own."""

    def __init__(self, data: Path, folder: Path, **chosen: str) -> None:
        self.port, self.log = free_port(), folder / "log"
        keys = {key.replace("__", "."): value for key, value in chosen.items()}
        keys |= {"logging.metrics_port": str(self.port), "global_train_batch_size": "16"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                warmed(sys.executable, *arguments(data, folder, keys)),
                cwd=ROOT,
                env=variables(),
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def until(self, seen: Callable[[], Any], seconds: float = 900) -> Any:
        """Waits until something is so, while the process lives."""
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(ConnectionError, urllib.error.URLError):
                found = seen()
                if found:
                    return found
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)

    def batch(self) -> float:
        """Batches trained, as served."""
        return values(scrape(self.port)).get("ahpa_batch", 0)


@pytest.fixture
def start(data: Path, tmp_path: Path) -> Iterator[Callable[..., Job]]:
    jobs: list[Job] = []

    def started(**chosen: str) -> Job:
        jobs.append(Job(data, tmp_path, **chosen))
        return jobs[-1]

    yield started
    for job in jobs:
        job.process.kill()
        job.process.wait()


def test_a_run_is_served_while_it_trains_and_after_it_was_taken_up_again(start, tmp_path):
    saving = {"checkpoint__save_folder": str(tmp_path / "saved"), "checkpoint__autoresume": "true"}
    lasting = {**saving, "max_duration": "100000ba", "checkpoint__save_interval": "4ba"}
    began = time.time()
    job = start(**lasting, watch__hang="1000")
    # It answers long before torch is there.
    assert job.until(lambda: get(job.port, "/healthz")) == (200, "starting\n")
    job.until(lambda: job.batch() >= 9)
    job.until(lambda: "ahpa_checkpoint_batch" in values(scrape(job.port)))
    samples = scrape(job.port)
    found, now = values(samples), time.time()

    (info,) = [dict(labels) for name, labels in samples if name == "ahpa_run_info"]
    assert info == {
        "run": "demo-ahpa",
        "version": ahpa_scale.__version__,
        "engine": "ddp",
        "ranks": "1",
        "node": "0",
    }
    assert found["ahpa_images"] == 16 * found["ahpa_batch"]
    assert found["ahpa_planned_batches"] == 100000
    losses = {dict(labels)["part"]: v for (name, labels), v in samples.items() if "_loss" in name}
    assert set(losses) == {"total", "flow", "alignment"}
    assert losses["total"] == pytest.approx(losses["flow"] + 0.5 * losses["alignment"], rel=1e-5)
    assert found["ahpa_learning_rate"] == pytest.approx(3e-3)
    assert found["ahpa_gradient_norm"] > 0
    assert found["ahpa_images_per_second"] > 0
    assert "ahpa_mfu" not in found, "a CPU has no peak that Composer knows"
    assert 0 < found["ahpa_data_wait_seconds_total"] < found["ahpa_loop_seconds_total"]
    assert found["ahpa_nonfinite_batches_total"] == 0
    assert found["ahpa_checkpoint_batch"] % 4 == 0
    moments = ("start", "checkpoint", "last_event")
    times = {name: found[f"ahpa_{name}_timestamp_seconds"] for name in moments}
    assert all(began < at <= now for at in times.values())
    assert now - times["last_event"] < 20
    logged = {dict(labels)["name"] for name, labels in samples if name == "ahpa_logged"}
    assert "grad_norm/attachments" in logged
    assert not [name for name in logged if name.startswith(("time/", "loss/train/"))]
    status, text = get(job.port, "/healthz")
    assert status == 200
    assert text.startswith("batch ")
    assert get(job.port, "/")[0] == 404

    job.process.send_signal(signal.SIGKILL)
    job.process.wait()
    again = start(**{**lasting, "checkpoint__save_interval": "100000ba"})
    again.until(lambda: again.batch() > 0)
    taken_up = values(scrape(again.port))
    assert taken_up["ahpa_checkpoint_batch"] >= found["ahpa_checkpoint_batch"]
    manifest = tmp_path / f"saved/ba{taken_up['ahpa_checkpoint_batch']:.0f}/manifest.json"
    created = datetime.fromisoformat(json.loads(manifest.read_text())["created"])
    assert taken_up["ahpa_checkpoint_timestamp_seconds"] == created.timestamp()
    assert taken_up["ahpa_start_timestamp_seconds"] > times["start"]


def test_a_step_that_hangs_fails_the_probe_and_one_that_goes_on_passes_it_again(start, tmp_path):
    """The step hangs as on a dead disk: metrics.jsonl is a pipe that nobody reads. One rank alone,
    which no watch would end.
    """
    pipe = tmp_path / "run" / "metrics.jsonl"
    pipe.parent.mkdir()
    os.mkfifo(pipe)
    job = start(max_duration="100000ba", watch__hang="10")
    # It looks for rows of an earlier attempt, and finds the end.
    writer = job.until(lambda: opened(pipe, os.O_WRONLY))
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    os.close(writer)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
    job.until(lambda: job.batch() >= 3)
    status, text = job.until(lambda: is_ill(get(job.port, "/healthz")))
    assert status == 503
    stuck, seconds = re.fullmatch(r"batch (\d+): batch_end, for (\d+) s\n", text).groups()
    assert int(seconds) >= 10
    assert job.batch() == int(stuck), "metrics are there while it hangs"
    late = time.time() - values(scrape(job.port))["ahpa_last_event_timestamp_seconds"]
    assert late >= 10

    def goes_on() -> bool:
        with contextlib.suppress(BlockingIOError):
            os.read(reader, 1 << 16)
        return job.batch() > int(stuck) and get(job.port, "/healthz")[0] == 200

    job.until(goes_on)
    os.close(reader)


def opened(pipe: Path, flags: int) -> int | None:
    """A pipe's end, once the other one is there."""
    try:
        return os.open(pipe, flags | os.O_NONBLOCK)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return None


def is_ill(answer: tuple[int, str]) -> tuple[int, str] | None:
    return answer if answer[0] != 200 else None


def test_a_port_that_is_taken_is_one_line_and_nothing_is_touched(start, data, tmp_path):
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        words = arguments(data, tmp_path, {"logging.metrics_port": str(port)})
        done = run(sys.executable, *words)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        f"error: command line: logging.metrics_port: TCP port {port} can't be had on "
    )
    assert not (tmp_path / "run").exists()


def test_an_error_of_one_host_is_said_by_its_own_rank(monkeypatch, capsys):
    """Where each node has a rank that serves, another than rank 0 may find its port taken."""
    monkeypatch.setenv("RANK", "8")
    with pytest.raises(SystemExit) as ended, exit_on_user_error():
        raise HostError("logging.metrics_port: taken")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: logging.metrics_port: taken\n"


@pytest.mark.parametrize(
    ("local_rank", "port", "served"), [("0", True, True), ("1", True, False), ("0", False, False)]
)
def test_the_first_rank_of_a_node_serves(load, monkeypatch, local_rank, port, served):
    number = free_port()
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    config = load(f"logging.metrics_port={number if port else 'null'}")
    with serve_metrics(config, Pulse()) as board:
        assert (board is not None) is served
        if served:
            assert get(number, "/healthz") == (200, "starting\n")
    with pytest.raises(urllib.error.URLError):
        get(number, "/healthz")


@pytest.mark.parametrize(
    ("hang", "after", "well"), [(5.0, 4.9, True), (5.0, 5.0, False), (None, 1e9, True)]
)
def test_health_follows_the_last_mark(hang, after, well):
    pulse = Pulse()
    assert health(pulse, hang, pulse.marked + 1e9) == (True, "starting")
    pulse.mark("before_forward", 12)
    found, text = health(pulse, hang, pulse.marked + after)
    assert found is well
    assert text == f"batch 12: before_forward, for {after:.0f} s"


def test_waiting_for_an_upload_is_a_sign_of_life():
    pulse = Pulse()
    pulse.mark("fit_end", 12)
    before = pulse.marked
    pulse.saves()
    assert pulse.marked > before
    assert health(pulse, 5.0, pulse.marked)[1].startswith("batch 12: waits for the upload")


def test_a_port_is_free_again_after_the_run():
    port = free_port()
    for _ in range(2):
        with serving(port, Board(), Pulse(), None):
            assert get(port, "/metrics")[0] == 200


@pytest.mark.parametrize("port", ["0", "65536", "nine"])
def test_a_port_that_is_none_is_refused(complaint, port):
    assert "logging.metrics_port" in complaint(f"logging.metrics_port={port}")


def test_hang_without_the_watch_has_an_effect_through_the_probe_alone(load, complaint):
    off = ("watch.enabled=false", "watch.hang=60")
    assert "watch.hang" in complaint(*off)
    assert load(*off, "logging.metrics_port=9400").watch.hang == 60


def test_the_port_at_which_ranks_meet_is_refused(complaint, monkeypatch):
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert "MASTER_PORT" in complaint("logging.metrics_port=29500")
