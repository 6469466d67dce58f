# SPDX-License-Identifier: Apache-2.0
"""One job of two launchers on one host, in containers that share its memory and its disk."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from job import CLI, ROOT, outside
from test_two_hosts import arguments, rows
from test_watch import free_udp_port

from ahpa_scale.checkpoint.find import list_checkpoints

BATCHES = 12
#: A PID namespace each, as containers have: numbers of processes there mean nothing elsewhere.
CONTAINER = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


class Job:
    """The job, from its start to its end.

    Args:
        data: prepared.
        folder: for all that it writes.
    """

    def __init__(self, data: Path, folder: Path) -> None:
        self.folder, self.port = folder, free_udp_port()
        self.logs = [folder / f"log{node}" for node in (0, 1)]
        self.save_folder = folder / "checkpoints"
        self.launchers = [self._launch(data, node) for node in (0, 1)]

    def _launch(self, data: Path, node: int) -> subprocess.Popen[bytes]:
        chosen = {
            "max_duration": f"{BATCHES}ba", "checkpoint.save_folder": str(self.save_folder),
            "checkpoint.save_interval": "1ba", "data.num_workers": "1",
        }  # fmt: skip
        place = ("--nnodes", 2, "--node-rank", node, "--nproc", 1, "--master-addr", "127.0.0.1",
                 "--master-port", self.port)  # fmt: skip
        words = (*CONTAINER, CLI, "launch", *place, *arguments(data, self.folder, chosen))
        temporary = self.folder / f"tmp{node}"
        temporary.mkdir()
        with self.logs[node].open("w") as log:
            return subprocess.Popen(
                [str(word) for word in words], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
                env={**outside(), "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)},
            )  # fmt: skip

    def told(self) -> str:
        """What both have said."""
        return "\n".join(log.read_text() for log in self.logs)


@pytest.fixture(scope="module")
def ended(demo_data, tmp_path_factory) -> Iterator[Job]:
    can = subprocess.run([*CONTAINER, "true"], capture_output=True, text=True, check=False)
    if can.returncode != 0:
        pytest.skip(f"no PID namespaces on this machine: {can.stderr.strip()}")
    folder = tmp_path_factory.mktemp("one-host")
    job = Job(demo_data(64), folder)
    try:
        for launcher in job.launchers:
            launcher.wait(400)
        yield job
    finally:
        for launcher in job.launchers:
            launcher.kill()
            launcher.wait()


def test_it_trains(ended):
    assert [launcher.returncode for launcher in ended.launchers] == [0, 0], ended.told()
    assert [row["batch"] for row in rows(ended.folder)] == list(range(1, BATCHES + 1))
    assert "another job" not in ended.told()
    # Else each would have had locks of its own on what both share.
    assert not list(ended.folder.glob("tmp*/*filelock"))


def test_each_container_keeps_its_hands_off_the_others_files(ended):
    assert "not saved" not in ended.told()
    found = list_checkpoints(str(ended.save_folder))
    assert [one.batch for one in found] == list(range(1, BATCHES + 1))
    assert not any(one.problem for one in found)
    assert not list(ended.save_folder.rglob(".spool*"))
