# SPDX-License-Identifier: Apache-2.0
"""A job that knows a password and a token, and fails inside a library that tells both: they are
nowhere but in its environment.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import psutil
import pytest
from job import CLI, ROOT
from test_ending_job import Job, words

PASSWORD, TOKEN = "correct-horse-battery", "token-1f0c9e77"
STORE = f"s3://me:{PASSWORD}@bucket/set"
#: What `train.py` does, with a store that is a folder, and a library that fails on rank 0.
FAULTY = """
import logging, os, sys, threading, warnings
from ahpa_scale.ending import one_way_out
from ahpa_scale.preemption import listening
from ahpa_scale.streams import make_lasting

def fail(self, event, state, logger):
    if state.timestamp.batch.value == 2 and os.environ.get("RANK", "0") == "0":
        told = f"no answer of {os.environ['STORE']} to {os.environ['AHPA_TEST_TOKEN']}"
        logging.getLogger("library").warning("retry: %s", told)
        warnings.warn(told)
        print(told)
        thread = threading.Thread(target=lambda: {}[told])
        thread.start()
        thread.join()
        raise RuntimeError(told)

if __name__ == "__main__":
    make_lasting()
    with listening(preparing=True) as requests, one_way_out(always=True):
        from fsspec.implementations.local import LocalFileSystem
        from ahpa_scale import storage
        from ahpa_scale.callbacks import Heartbeat
        from ahpa_scale.run.main import main

        def open_store(url):
            return LocalFileSystem(), url.replace(os.environ["STORE"], os.environ["PLACE"])

        storage.open_store = open_store
        Heartbeat.run_event = fail
        main(sys.argv[1:], requests)
"""


@pytest.fixture(scope="module")
def place(demo_data) -> Path:
    """Of the data set that the store has."""
    return demo_data(128)


def arguments_of(job: Job) -> set[str]:
    """Those of all its processes, as any user of the machine can read them."""
    found = set()
    for process in job.processes():
        with contextlib.suppress(psutil.Error):
            found.add(" ".join(process.cmdline()))
    return found


@pytest.mark.parametrize(("launched", "form"), [(True, "text"), (False, "json")])
def test_a_password_and_a_token_are_nowhere(launched: bool, form: str, place: Path, tmp_path: Path):
    (tmp_path / "faulty.py").write_text(FAULTY)
    chosen = {
        "data.remote": STORE,
        "data.num_workers": 1,
        "logging.wandb": "secrets",
        "logging.format": form,
        "checkpoint.save_folder": f"{tmp_path}/${{oc.env:AHPA_TEST_TOKEN}}",
    }
    items = words(tmp_path / "cache", tmp_path, **chosen)[1:]
    command = [CLI, "launch", "--nproc", 2] if launched else [sys.executable]
    environment = {"STORE": STORE, "PLACE": str(place), "AHPA_TEST_TOKEN": TOKEN}
    job = Job(
        tmp_path, *command, tmp_path / "faulty.py", *items, **environment, PYTHONPATH=str(ROOT)
    )
    said: set[str] = set()

    def over() -> bool:
        # What this test has typed is gone once the launcher is there.
        if launched and (tmp_path / "run").exists():
            said.update(arguments_of(job))
        return job.process.poll() is not None

    try:
        job.wait_for(over)
    finally:
        for process in job.processes():
            process.kill()
    told = job.log.read_text()
    assert job.process.returncode == 1, told
    assert "no answer of s3://me:***@bucket/set to ${oc.env:AHPA_TEST_TOKEN}" in told
    assert told.count("s3://me:***@bucket") >= 5
    assert "Traceback" in told
    assert "RuntimeError" in told
    assert not [one for one in said if PASSWORD in one or TOKEN in one]
    assert bool(said) == launched
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    for secret in (PASSWORD.encode(), TOKEN.encode()):
        holders = [path for path in files if secret in path.read_bytes()]
        assert holders == []
    # What wandb would upload has the arguments and the console.
    (kept,) = tmp_path.glob("run/wandb/offline-run-*/run-*.wandb")
    for masked in (b"data.remote=s3://me:***@bucket/set", b"no answer of s3://me:***@bucket/set"):
        assert masked in kept.read_bytes()
