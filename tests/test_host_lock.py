# SPDX-License-Identifier: Apache-2.0
"""Jobs that open their data at the same moment on one host."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from filelock import FileLock, Timeout

from ahpa_scale.data import neighbours
from ahpa_scale.data.host_lock import alone_on_host

# Each job says that it is ready, waits for the common start, and opens the same data many times.
JOB = """
import sys, time
from pathlib import Path
from ahpa_scale.data.stream import build_loader
data, room, name, start = sys.argv[1:]
Path(room, name).touch()
while not Path(room, start).exists():
    time.sleep(0.001)
for _ in range(25):
    next(iter(build_loader(data, batch_size=8)))
"""


def test_jobs_that_start_together_all_get_their_data(prepared, tmp_path):
    names = [f"job{number}" for number in range(4)]
    words = [sys.executable, "-c", JOB, prepared, str(tmp_path)]
    jobs = [
        subprocess.Popen([*words, name, "start"], stderr=subprocess.PIPE, text=True)
        for name in names
    ]
    try:
        while not all((tmp_path / name).exists() for name in names):
            assert all(job.poll() is None for job in jobs), "a job died before the start"
            time.sleep(0.05)
        (tmp_path / "start").touch()
        for job in jobs:
            _, errors = job.communicate(timeout=240)
            assert job.returncode == 0, errors
    finally:
        for job in jobs:
            job.kill()


def test_a_lock_that_is_never_given_back_is_not_waited_for(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(neighbours, "MEMORY", tmp_path)
    with alone_on_host():
        (path,) = tmp_path.glob("*.lock")
        with pytest.raises(Timeout):
            FileLock(path, timeout=0).acquire()
        with alone_on_host(patience=0.1):
            assert "not waiting" in caplog.text
    with FileLock(path, timeout=0):
        pass  # given back
