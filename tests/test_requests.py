# SPDX-License-Identifier: Apache-2.0
"""Signals and switch files: heard while the main thread is busy, acted on between two batches."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from job import ROOT
from toy_trainer import toy_trainer

from ahpa_scale import storage
from ahpa_scale.algorithms import Guard
from ahpa_scale.checkpoint.find import list_checkpoints
from ahpa_scale.checkpoint.saver import Saver
from ahpa_scale.requests import Requests, listening

BUSY = """
import sys, time, threading
from ahpa_scale.requests import listening
with listening(grace={grace}) as requests:
    print("ready", flush=True)
    {work}
    print("leave", requests.leave, flush=True)
"""
# One call into C that runs no Python and takes longer than any test.
IN_C = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
POLITE = "\n    ".join(["while requests.leave is None:", "    time.sleep(0.01)"])


def start(work: str, grace: float | None = None, before: str = "") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", before + BUSY.format(work=work, grace=grace)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_asks_to_leave_and_the_process_goes_on(name: str):
    process = start(POLITE)
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0
    assert out == f"leave {name}\n"
    assert f"{name}: saving a checkpoint after this batch, then leaving" in err


MANY_FILES = """
import os, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (1200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
files = [os.dup(0) for _ in range(1100)]
"""


def test_a_process_with_over_a_thousand_open_files_hears_too():
    process = start(POLITE, before=MANY_FILES)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=300)
    assert (process.returncode, out) == (0, "leave SIGTERM\n")


def test_a_console_that_is_gone_keeps_no_request_away():
    process = start("sys.stderr.close()\n    " + POLITE)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert out == "leave SIGTERM\n"


def test_a_second_signal_ends_it_at_once_though_python_does_not_run():
    process = start(IN_C)
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    assert "SIGTERM: saving" in process.stderr.readline()
    assert process.poll() is None
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 80
    assert "a second signal, SIGUSR1: leaving at once, without a checkpoint" in err


def test_the_grace_time_ends_it_too():
    process = start(IN_C, grace=0.5)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 80
    assert "the grace time of 0.5 s has passed: leaving at once" in err


def test_children_die_of_the_signal_and_do_not_tell_the_parent():
    fork = (
        "import os, signal; child = os.fork(); "
        "child or time.sleep(600); "
        "time.sleep(0.2); os.kill(child, signal.SIGTERM); "
        "print('child', os.waitpid(child, 0)[1], flush=True); time.sleep(0.2)"
    )
    process = start(fork)
    out, _ = process.communicate(timeout=300)
    assert out == f"child {int(signal.SIGTERM)}\nleave None\n"


def test_switches_are_seen_and_taken_away(tmp_path: Path):
    with listening(switches=str(tmp_path), look_every=0.02) as requests:
        (tmp_path / "SAVE").touch()
        wait_for(lambda: requests.save)
        assert requests.leave is None
        (tmp_path / "STOP").touch()
        wait_for(lambda: requests.leave is not None)
    assert requests.leave == "the file STOP"
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_does_not_answer_holds_nothing_up(monkeypatch):
    asked = []

    def never(url) -> bool:
        asked.append(url)
        time.sleep(600)
        return False

    monkeypatch.setattr(storage, "exists", never)
    begun = time.monotonic()
    with listening(switches="s3://gone", look_every=0.01) as requests:
        wait_for(lambda: asked)
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: requests.leave is not None)
    assert time.monotonic() - begun < 500


def test_a_request_that_comes_after_the_vote_waits_for_the_next():
    requests = Requests(save=True)
    requests.agree(leave=False, save=False)
    assert requests.save
    requests.agree(leave=False, save=True)
    assert (requests.save, requests.saving) == (False, True)


def test_a_run_saves_when_asked_and_leaves_when_asked(tmp_path: Path):
    requests = Requests()

    class Outside(Saver):
        def batch_start(self, state, logger):
            batch = state.timestamp.batch.value
            requests.save = requests.save or batch == 1
            requests.leave = "SIGTERM" if batch == 4 else requests.leave

    saver = Outside(str(tmp_path / "saved"), "100ba", requests=requests)
    guard = Guard(tmp_path, nonfinite="none", requests=requests)
    trainer = toy_trainer("20ba", algorithms=guard, callbacks=saver)
    trainer.fit()
    trainer.close()
    assert [one.name for one in list_checkpoints(str(tmp_path / "saved"))] == ["ba2", "ba5"]
    assert trainer.state.timestamp.batch == 5
    assert requests.leaving
    told = (tmp_path / "guard.jsonl").read_text()
    assert '"event": "leave", "batch": 5' in told


def wait_for(condition) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
