# SPDX-License-Identifier: Apache-2.0
"""How a job ends, through its public doors: errors, signals, consoles and launchers that go."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from job import BIN, CLI, ROOT, outside
from test_two_hosts import arguments, rows

from ahpa_scale.checkpoint.find import list_checkpoints

#: Seconds in which everything must have gone after its cause; a busy machine is given more below.
BOUND = 60
#: What `train.py` does, after an error has been put into the place that the environment names.
FAULTY = """
import os, signal, sys
from ahpa_scale.ending import one_way_out
from ahpa_scale.preemption import listening

def callback():
    from ahpa_scale.callbacks import Heartbeat
    def fail(self, event, state, logger):
        if state.timestamp.batch.value == 2:
            raise KeyError("in a callback")
    Heartbeat.run_event = fail

def worker():
    from ahpa_scale.data.latents import LatentStream
    def fail(self, sample_id, retry=7):
        raise ZeroDivisionError("in a worker")
    LatentStream.get_item = fail

def killed():
    from ahpa_scale.data.latents import LatentStream
    read = LatentStream.get_item
    def fail(self, sample_id, retry=7):
        if sample_id % 32 == 31:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, sample_id, retry)
    LatentStream.get_item = fail

def unsent():
    import tempfile
    from ahpa_scale.data.latents import LatentStream
    read = LatentStream.get_item
    def lose(self, sample_id, retry=7):
        tempfile.tempdir = "/nowhere"  # as where somebody clears it
        return read(self, sample_id, retry)
    LatentStream.get_item = lose

def closing():
    import threading
    from ahpa_scale.callbacks import Heartbeat
    from ahpa_scale.run import main
    main.CLOSING = 3.0
    Heartbeat.close = lambda self, state, logger: threading.Event().wait()

def leaving():
    import atexit, threading
    from ahpa_scale import ending
    ending._FAREWELL = 3.0
    atexit.register(threading.Event().wait)

def away():
    from ahpa_scale import storage
    from ahpa_scale.unreachable import UnreachableError
    def fail(local, url):
        raise UnreachableError("s3://store does not answer")
    storage.put_file = fail

def grid():
    from ahpa_scale.callbacks import SampleGrid
    def fail(self, state):
        raise ValueError("in the sample grid")
    SampleGrid.draw = fail

if __name__ == "__main__":
    with listening(preparing=True) as requests, one_way_out(always=True):
        from ahpa_scale.run.main import main

        if os.environ.get("RANK", "1") == "1":
            globals()[os.environ["FAULT"]]()
        main(sys.argv[1:], requests)
"""


@pytest.fixture(scope="module")
def data(demo_data) -> Path:
    return demo_data(256)


class Job:
    """A job in a session of its own."""

    def __init__(
        self, folder: Path, *command: object, console: int | None = None, **environment: str
    ) -> None:
        self.folder, self.log = folder, folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                cwd=ROOT,
                env={**outside(), "OMP_NUM_THREADS": "1", "MARK": str(folder), **environment},
                stdout=log if console is None else console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_for(self, condition: Callable[[], Any], seconds: float = 300) -> None:
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.05)

    def trains(self, batches: int = 2) -> None:
        def there() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return len(rows(self.folder)) >= batches

        self.wait_for(there)

    def processes(self) -> list[psutil.Process]:
        """All that belong to it."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("MARK") == str(self.folder):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return found

    def ended(self, seconds: float = BOUND) -> int:
        """Its exit code, once nothing of it is left."""
        code = self.process.wait(seconds)
        self.wait_for(lambda: not self.processes(), seconds)
        return code

    def signal_all(self, number: int) -> None:
        os.killpg(self.process.pid, number)


@pytest.fixture
def start(tmp_path: Path):
    jobs: list[Job] = []

    def begin(*command: object, **options: Any) -> Job:
        jobs.append(Job(tmp_path, *command, **options))
        return jobs[-1]

    yield begin
    for job in jobs:
        for process in job.processes():
            process.kill()
        job.process.wait()


def history(folder: Path) -> list[str]:
    return (folder / "run" / "history.jsonl").read_text().splitlines()


def words(data: Path, folder: Path, **chosen: object) -> list[str]:
    keys = {name.replace("__", "."): str(value) for name, value in chosen.items()}
    few = {"max_duration": "100000ba", "checkpoint.save_folder": str(folder / "saved")}
    return arguments(data, folder, few | {"global_train_batch_size": "8"} | keys)


@pytest.mark.parametrize(
    ("fault", "ranks", "workers", "cause"),
    [
        ("callback", 2, 8, "KeyError: 'in a callback'"),
        ("worker", 1, 2, "ZeroDivisionError: in a worker"),
        ("killed", 1, 2, "is killed by signal: Killed"),
        ("unsent", 2, 1, "No such file or directory: '/nowhere/"),
        ("grid", 1, 1, "ValueError: in the sample grid"),
    ],
)
def test_an_error_is_told_and_ends_the_job(
    fault: str, ranks: int, workers: int, cause: str, start, data: Path, tmp_path: Path
):
    script = tmp_path / "faulty.py"
    script.write_text(FAULTY)
    grid = {"sampling__interval": "2ba"} if fault == "grid" else {}
    items = words(data, tmp_path, data__num_workers=workers, **grid)[1:]
    launch = [CLI, "launch", "--nproc", ranks] if ranks > 1 else [sys.executable]
    job = start(*launch, script, *items, FAULT=fault, PYTHONPATH=str(ROOT))
    job.wait_for(lambda: cause in job.log.read_text() or job.process.poll() is not None)
    begun = time.monotonic()
    assert job.ended() == 1, job.log.read_text()
    assert cause in job.log.read_text()
    assert time.monotonic() - begun < BOUND
    began, ended = (json.loads(line) for line in history(tmp_path))
    assert (began["event"], began["batch"], began["ranks"]) == ("start", 0, ranks)
    # If another rank fails first, a launcher's signals or the watch may end this one.
    assert ended["exit_code"] in ((1,) if ranks == 1 else (1, 75, 80))
    assert ended["reason"]


@pytest.mark.parametrize(
    ("fault", "code", "cause"),
    [
        ("closing", 1, r"error: leaving with code 1: Heartbeat\.<lambda> \(.*threading.py:\d+\)"),
        ("leaving", 0, r"error: leaving with code 0: .*threading.py:\d+"),
    ],
)
def test_a_good_run_whose_end_hangs_ends_and_says_what_it_waits_for(
    fault: str, code: int, cause: str, start, data: Path, tmp_path: Path
):
    script = tmp_path / "faulty.py"
    script.write_text(FAULTY)
    items = words(data, tmp_path, data__num_workers=1, max_duration="2ba")[1:]
    job = start(sys.executable, script, *items, FAULT=fault, PYTHONPATH=str(ROOT))
    assert job.ended(300) == code, job.log.read_text()
    assert re.search(f"^{cause} took more than 3 s$", job.log.read_text(), re.M)
    (saved,) = list_checkpoints(str(tmp_path / "saved"))
    assert saved.batch == 2


def test_a_last_checkpoint_that_its_store_does_not_take_asks_for_another_try(
    start, data: Path, tmp_path: Path
):
    script = tmp_path / "faulty.py"
    script.write_text(FAULTY)
    items = words(data, tmp_path, data__num_workers=1, max_duration="2ba")[1:]
    job = start(sys.executable, script, *items, FAULT="away", PYTHONPATH=str(ROOT))
    assert job.ended(300) == 75, job.log.read_text()
    assert "error: ba2 was not saved: rank 0: s3://store does not answer" in job.log.read_text()


def test_neither_a_console_that_goes_nor_a_hang_up_ends_training_and_sigterm_to_all_is_one_request(
    start, data: Path, tmp_path: Path
):
    """As a dropped ssh does; and as srun, systemd and GNU timeout end a job."""
    items = words(data, tmp_path, data__num_workers=1, logging__wandb="ending")
    reader, writer = os.pipe()
    job = start(CLI, "launch", "-n", 2, *items, console=writer)
    os.close(writer)
    os.close(reader)
    job.trains()
    job.signal_all(signal.SIGHUP)
    seen = len(rows(tmp_path))
    job.trains(seen + 2)
    job.signal_all(signal.SIGTERM)
    assert job.ended() == 79
    (saved,) = list_checkpoints(str(tmp_path / "saved"))
    assert saved.batch == rows(tmp_path)[-1]["batch"]


def test_signals_to_every_process_leave_the_tracker_of_shared_memory_alive(
    start, data: Path, tmp_path: Path
):
    """Python's own helper process ignores SIGINT and SIGTERM, and no others."""
    job = start(CLI, "launch", "-n", 2, *words(data, tmp_path, data__num_workers=1))
    job.trains()
    job.signal_all(signal.SIGHUP)
    job.trains(len(rows(tmp_path)) + 2)
    job.signal_all(signal.SIGUSR1)
    assert job.ended() == 79, job.log.read_text()
    told = job.log.read_text()
    assert "resource_tracker" not in told
    assert "Traceback" not in told


def test_ctrl_c_in_the_middle_of_a_sample_grid_leaves_with_a_checkpoint(
    start, data: Path, tmp_path: Path
):
    """The grid alone would take hours."""
    items = words(data, tmp_path, data__num_workers=1, sampling__interval="2ba",
                  sampling__steps=100_000)  # fmt: skip
    job = start(sys.executable, *items)
    job.trains(1)  # the row of the second batch comes after the grid
    time.sleep(1)
    job.signal_all(signal.SIGINT)
    assert job.ended(120) == 79, job.log.read_text()
    told = job.log.read_text()
    assert "SIGINT: saving a checkpoint after this batch within 120 s, then leaving" in told
    assert "Traceback" not in told
    (saved,) = list_checkpoints(str(tmp_path / "saved"))
    assert saved.batch in (2, 3), "the grid began, or it had not yet"
    assert not (tmp_path / "run" / "samples").exists()


LAUNCHERS = {
    "ours": [CLI, "launch", "-n", 2],
    "composers": [BIN / "composer", "-n", 2],
    "torchrun": [BIN / "torchrun", "--standalone", "--nproc-per-node", 2],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_that_is_killed_takes_its_ranks_along(
    launcher: str, start, data: Path, tmp_path: Path
):
    job = start(*LAUNCHERS[launcher], *words(data, tmp_path, data__num_workers=1))
    job.trains()
    job.process.kill()
    job.ended()
    assert list_checkpoints(str(tmp_path / "saved"))
    assert "the end of its launcher: saving a checkpoint" in job.log.read_text()


@pytest.mark.parametrize("launched", [False, True])
def test_a_request_while_it_is_built_is_one_line(launched: bool, start, data: Path, tmp_path: Path):
    command = [CLI, "launch", "-n", 1] if launched else [sys.executable]
    job = start(*command, *words(data, tmp_path))

    def hears() -> bool:
        assert job.process.poll() is None
        if launched:  # and about to start Python once more
            return "one node" in job.log.read_text()
        status = Path(f"/proc/{job.process.pid}/status").read_text()
        caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
        return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)

    job.wait_for(hears)
    job.process.send_signal(signal.SIGTERM)
    assert job.ended() == 79, job.log.read_text()
    assert job.log.read_text().count("leaving before the first batch") == 1
    assert "Traceback" not in job.log.read_text()
