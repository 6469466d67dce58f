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
from job import ROOT, outside
from toy_trainer import toy_trainer

from ahpa_scale import storage
from ahpa_scale.algorithms import Guard
from ahpa_scale.checkpoint.find import list_checkpoints
from ahpa_scale.checkpoint.saver import Saver
from ahpa_scale.preemption import Requests, listening, looking
from ahpa_scale.signals import Count, handed_on

BUSY = """
import sys, time, threading
from ahpa_scale.preemption import listening
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


ABOVE = "from ahpa_scale.signals import launcher_above; print(launcher_above() is not None)"


@pytest.mark.parametrize(
    ("words", "variables", "is_launcher"),
    [
        ([sys.executable, "-c"], {"RANK": "1"}, True),
        ([sys.executable, "-c"], {}, False),  # a job of one process, and no rank
        (["sh", "-c"], {"RANK": "1"}, False),
        (["bash", "-c"], {"RANK": "1"}, False),
    ],
)
def test_what_starts_a_rank_is_its_launcher_and_a_shell_is_none(
    words: list[str], variables: dict[str, str], is_launcher: bool
):
    command = f"{sys.executable} -c '{ABOVE}'"
    if words[0] == sys.executable:
        command = f"import subprocess; subprocess.run([{sys.executable!r}, '-c', {ABOVE!r}])"
    else:
        command += "; true"  # or it would become the program itself
    done = subprocess.run(
        [*words, command], cwd=ROOT, text=True, env={**outside(), **variables},
        capture_output=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.stdout.split()[-1:] == [str(is_launcher)], done.stderr


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


def test_children_ignore_the_signals_and_end_with_their_parent():
    """srun, systemd and a terminal's Ctrl-C signal loaders' workers too: a rank needs them."""
    fork = (
        "import os, signal, sys; child = os.fork(); "
        "child or time.sleep(600); "
        "time.sleep(0.2); [os.kill(child, n) for n in (signal.SIGTERM, signal.SIGINT)]; "
        "time.sleep(0.2); print('child', *os.waitpid(child, os.WNOHANG), flush=True); "
        "sys.stderr.write(f'{child}\\n'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    process = start(fork)
    out, err = process.communicate(timeout=300)
    assert out == "child 0 0\n"
    wait_for(lambda: not Path("/proc", err.strip()).exists())


def test_a_thread_that_listens_is_not_waited_for_where_children_live():
    """They inherit its pipe, so that it never ends: an error would hang the process for good."""
    fork = "import os; child = os.fork(); child or time.sleep(600); raise ValueError('seen')"
    process = start(fork)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "ValueError: seen" in err


def test_a_request_before_anything_is_trained_is_followed_at_once():
    process = start(IN_C, before="import functools, ahpa_scale.preemption as r; "
                    "r.listening = functools.partial(r.listening, preparing=True)")  # fmt: skip
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (79, "")
    assert err == "SIGINT: leaving before the first batch; there is nothing to save\n"


TERM, USR1, INT = signal.SIGTERM, signal.SIGUSR1, signal.SIGINT


@pytest.mark.parametrize(
    ("heard", "requests"),
    [
        ([(0, TERM)], 1),
        ([(0, TERM), (0.01, TERM)], 1),  # GNU timeout: to its child, then to the child's group
        ([(0, TERM), (3, TERM)], 2),
        ([(0, TERM), (0.3, USR1)], 2),
        ([(0, TERM), (9, handed_on(TERM))], 1),  # to the group, and by our launcher, late
        ([(0, handed_on(TERM)), (9, TERM)], 1),
        ([(0, handed_on(TERM)), (0.1, handed_on(TERM))], 2),
        ([(0, INT), (0.2, TERM)], 1),  # Ctrl-C, which Composer's launcher answers by SIGTERM
        ([(0, INT), (0.2, TERM), (4, INT)], 2),
        ([(0, INT), (0.2, TERM), (4, TERM)], 2),
        ([(0, INT), (2, INT)], 2),
    ],
)
def test_what_reaches_a_rank_twice_is_one_request(heard, requests: int):
    count = Count()
    for at, number in heard:
        count.hear(number, 100.0 + at)
    assert count.requests == requests


def test_a_terminal_that_hangs_up_asks_for_nothing():
    process = start("time.sleep(0.3)")
    process.send_signal(signal.SIGHUP)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out, err) == (0, "leave None\n", "")


def test_switches_are_seen_and_taken_away(tmp_path: Path):
    requests = Requests()
    with looking(requests, str(tmp_path), every=0.02):
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
    with listening() as requests, looking(requests, "s3://gone", every=0.01):
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
