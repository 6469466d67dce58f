# SPDX-License-Identifier: Apache-2.0
"""One live run to a folder of checkpoints: real processes that hold it, die or leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from job import ROOT

from ahpa_scale import storage
from ahpa_scale.checkpoint import lease
from ahpa_scale.checkpoint.errors import CheckpointError
from ahpa_scale.checkpoint.lease import LEASE, holding

HOLD = """
import sys
from ahpa_scale.checkpoint import lease
lease._RENEWAL = 0.1
asked = []
with lease.holding(sys.argv[1], "first", leaves=lambda: bool(asked)):
    print("held", flush=True)
    for line in sys.stdin:
        asked.append(line)
        print("leaves", flush=True)
"""
Start = Callable[[Path], "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a process that holds a folder until its standard input ends."""
    started: list[subprocess.Popen[str]] = []

    def begin(folder: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


def test_a_second_run_is_refused_while_the_first_lives(start, tmp_path: Path):
    first = start(tmp_path)
    held = rf"in use by the run 'first' \(process {first.pid} on .*\), which is alive"
    with pytest.raises(CheckpointError, match=held), holding(str(tmp_path), "second"):
        pass
    assert first.poll() is None
    assert (tmp_path / LEASE).exists()


def test_a_clean_end_and_a_known_death_are_not_waited_for(start, tmp_path: Path, caplog):
    first = start(tmp_path)
    first.stdin.close()
    assert first.wait(60) == 0
    assert not (tmp_path / LEASE).exists()
    killed = start(tmp_path)
    killed.kill()
    killed.wait()
    assert (tmp_path / LEASE).exists()
    with holding(str(tmp_path), "second"):
        assert json.loads((tmp_path / LEASE).read_text())["run_name"] == "second"
    assert not (tmp_path / LEASE).exists()
    assert "waiting" not in caplog.text


def test_a_run_that_is_leaving_is_waited_for(start, tmp_path: Path, caplog):
    first = start(tmp_path)
    first.stdin.write("leave\n")
    first.stdin.flush()
    assert first.stdout.readline() == "leaves\n"
    while not json.loads((tmp_path / LEASE).read_text())["leaving"]:
        assert first.poll() is None
    threading.Timer(3, first.stdin.close).start()
    with holding(str(tmp_path), "second"):
        assert first.wait(60) == 0
    assert "waiting up to 60 s for a sign of life" in caplog.text


@pytest.mark.parametrize("content", [None, b"not a lease"])
def test_a_lease_of_another_machine_runs_out(content, tmp_path: Path, monkeypatch, caplog):
    monkeypatch.setattr(lease, "EXPIRY", 2.0)
    process = {**lease._this_process(), "boot": "another"}
    other = lease.Holder("first", "token", "host-b", process)
    (tmp_path / LEASE).write_bytes(content or lease._text(other).encode())
    with holding(str(tmp_path), "second"):
        assert b"second" in (tmp_path / LEASE).read_bytes()
    assert caplog.text.count("waiting") == 1


def test_a_lease_that_was_taken_is_lost_and_one_that_cannot_be_renewed_is_not(
    tmp_path: Path, monkeypatch, caplog
):
    monkeypatch.setattr(lease, "_RENEWAL", 0.0)
    monkeypatch.setattr(lease, "_TICK", 0.05)
    lost, told = threading.Event(), []

    def note(text: str) -> None:
        told.append(text)
        lost.set()

    folder, url = tmp_path / "saved", "memory://lease/saved"
    # A link and a file replace each other in one step. The renewal sees no moment without either.
    (tmp_path / "away").mkdir()
    for name in ("saved", "again"):
        (tmp_path / name).symlink_to(tmp_path / "away")
    (tmp_path / "file").touch()
    with holding(str(folder), "first", note) as held, holding(url, "first", note):
        (tmp_path / "file").replace(folder)
        while "can't be renewed for now" not in caplog.text:
            assert not told
        (tmp_path / "again").replace(folder)
        held.confirm()
        other = lease.Holder("second", "token", "host-b", {"pid": "7"})
        # Repeatedly, because a renewal that has just looked writes over it.
        for _ in range(120):
            storage.write_text(storage.join(url, LEASE), lease._text(other))
            if lost.wait(0.5):
                break
        assert lost.is_set()
    assert told == [
        f"{url} is in use by the run 'second' (process 7 on host-b), which is alive: end that one "
        "first, or give this run a save_folder of its own"
    ]
    assert caplog.text.count("can't be renewed") == 1
    assert storage.exists(storage.join(url, LEASE)), "the other's stays"


def test_of_two_that_start_at_once_one_is_told(tmp_path: Path):
    with holding(str(tmp_path), "first") as held:
        other = lease.Holder("second", "token", "host-b", {"pid": "7"})
        storage.write_text(tmp_path / LEASE, lease._text(other))
        with pytest.raises(CheckpointError, match="in use by the run 'second'"):
            held.confirm()


def test_processes_are_told_apart_by_when_they_were_started():
    here = lease.Holder("a", "token", "host", lease._this_process())
    assert not lease._is_dead(here)
    for changed, dead in (({"started": "1"}, True), ({"pids": "1"}, False), ({"pid": "x"}, False)):
        holder = lease.Holder("a", "token", "host", {**here.process, **changed})
        assert lease._is_dead(holder) is dead
    child = os.fork()
    if child == 0:
        os._exit(0)
    gone = {**here.process, "pid": str(child), "started": lease._started(child) or "0"}
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert lease._is_dead(lease.Holder("a", "token", "host", gone)), "though nobody has waited"
    os.waitpid(child, 0)
    assert lease._is_dead(lease.Holder("a", "token", "host", gone))
