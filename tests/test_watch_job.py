# SPDX-License-Identifier: Apache-2.0
"""The watch over real training on one host: Composer's launcher, two ranks, one goes wrong."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from job import BIN, ROOT, variables, warmed
from test_two_hosts import arguments, rows

SILENCE = 15


@pytest.fixture(scope="module")
def data(demo_data) -> Path:
    return demo_data(64)


class Job:
    """Two ranks that train without end, under Composer's launcher."""

    def __init__(self, data: Path, folder: Path, cold: bool) -> None:
        chosen = {"max_duration": "100000ba", "watch.silence": str(SILENCE)}
        self.folder, self.log = folder, folder / "log"
        words = [str(BIN / "composer"), "-n", "2", *arguments(data, folder, chosen)]
        with self.log.open("w") as log:
            self.launcher = subprocess.Popen(
                words if cold else warmed(*words),
                cwd=ROOT,
                env={**variables(), "MARK": str(folder)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def rank(self, number: int) -> int:
        """The process of a rank."""
        told = {"MARK": str(self.folder), "LOCAL_RANK": str(number)}.items()
        ranks = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if told <= process.environ().items():
                    ranks.append(process)
        # The eldest: its workers have the same environment.
        return min(ranks, key=psutil.Process.create_time).pid

    def trains(self) -> None:
        """Waits for the first batches."""
        until = time.monotonic() + 900
        while len(rows(self.folder)) < 3:
            assert self.launcher.poll() is None, self.log.read_text()
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.1)


@pytest.fixture
def job(request: pytest.FixtureRequest, data: Path, tmp_path: Path) -> Iterator[Job]:
    started = Job(data, tmp_path, cold="stops" in request.node.name)
    started.trains()
    ranks = [started.rank(number) for number in (0, 1)]
    yield started
    for pid in [*ranks, started.launcher.pid]:
        if started.launcher.poll() is None:
            os.kill(pid, signal.SIGKILL)
    started.launcher.wait()


@pytest.mark.parametrize("number", [0, 1])
def test_a_rank_that_is_killed_is_named_though_the_launcher_stops_the_other(job, number):
    """As the kernel does it when memory runs out."""
    os.kill(job.rank(number), signal.SIGKILL)
    assert job.launcher.wait(600) != 0
    told = job.log.read_text()
    assert re.search(
        rf"error: rank {number} on \S+ \(node 0\) has not been heard from for \d+ s; last seen at "
        r"batch \d+: \w+\n",
        told,
    ), told
    ends = (job.folder / "run" / "history.jsonl").read_text().splitlines()[1:]
    # A rank that is killed writes nothing more.
    told_ends = [json.loads(line) for line in ends]
    assert [one["exit_code"] for one in told_ends] == ([75] if number else [])
    assert all("rank 1" in one["reason"] for one in told_ends)


def test_a_rank_that_stops_answering_ends_the_job_and_the_launcher(job):
    """The launcher gives a process that takes no signal half a minute before it kills it."""
    os.kill(job.rank(1), signal.SIGSTOP)
    assert job.launcher.wait(600) == 75
    assert re.search(r"error: rank 1 on \S+ \(node 0\) has not been heard", job.log.read_text())
