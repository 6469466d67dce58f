# SPDX-License-Identifier: Apache-2.0
"""Containers that share a cache and not their memory: they work, or one line says why not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from data_sets import COUNT
from job import ROOT, variables, warmed

#: As containers have them: a memory and a temporary folder of their own.
CONTAINER = ("unshare", "--ipc", "--mount", "sh", "-c",
             'mount -t tmpfs tmpfs /dev/shm && exec "$@"', "sh")  # fmt: skip
#: Reads all samples. Where it has a partner, each of both copies a shard while the other does.
JOB = """
import shutil, sys, time
from pathlib import Path
from ahpa_scale.data import sharing
from ahpa_scale.data.stream import build_loader
from ahpa_scale.errors import UserError

remote, room, name, partner, limit = sys.argv[1:]
sharing._PATIENCE = 1.0
copy = shutil.copyfile

def meet(moment):
    Path(room, f"{name}-{moment}").touch()
    until = time.monotonic() + 120
    while not Path(room, f"{partner}-{moment}").exists() and time.monotonic() < until:
        time.sleep(0.01)

def copy_together(source, target):
    meet(f"before-{Path(source).name}")
    copy(source, target)
    meet(f"after-{Path(source).name}")

if partner:
    shutil.copyfile = copy_together
try:
    loader = build_loader(remote, batch_size=4, local=f"{room}/cache", shuffle=False,
                          cache_limit=limit or None)
    print(sorted(int(number) for batch in loader for number in batch["index"]), flush=True)
except UserError as error:
    sys.exit(f"error: {error}")
sys.stdin.read()
"""


@pytest.fixture
def start(prepared: str, tmp_path: Path):
    can = subprocess.run([*CONTAINER, "true"], capture_output=True, text=True, check=False)
    if can.returncode != 0:
        pytest.skip(f"no namespaces on this machine: {can.stderr.strip()}")
    jobs: list[subprocess.Popen[str]] = []

    def begin(name: str, partner: str = "", limit: str = "") -> subprocess.Popen[str]:
        temporary = tmp_path / f"tmp-{name}"
        temporary.mkdir()
        words = warmed(sys.executable, "-c", JOB, prepared, tmp_path, name, partner, limit)
        pipe = subprocess.PIPE
        jobs.append(
            subprocess.Popen(
                [*CONTAINER, *words], cwd=ROOT, env={**variables(), "TMPDIR": str(temporary)},
                stdin=pipe, stdout=pipe, stderr=pipe, text=True,
            )
        )  # fmt: skip
        return jobs[-1]

    yield begin
    for job in jobs:
        job.kill()
        job.communicate()


def reads_all(job: subprocess.Popen[str]) -> bool:
    assert job.stdout is not None
    assert job.stderr is not None
    line = job.stdout.readline()
    return line == f"{list(range(COUNT))}\n" or pytest.fail(line + job.stderr.read())


def test_containers_that_fetch_the_same_shards_at_once_read_them_all(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
):
    one, other = start("a", "b"), start("b", "a")
    assert reads_all(one)
    assert reads_all(other)
    assert not list(tmp_path.rglob("*.arriving"))


@pytest.mark.parametrize("limits", [("1gb", ""), ("", "1gb")])
def test_a_cache_with_a_limit_is_nobody_elses_until_its_run_has_gone(
    limits: tuple[str, str], start: Callable[..., subprocess.Popen[str]], tmp_path: Path
):
    first = start("a", limit=limits[0])
    assert reads_all(first)
    refused = start("b", limit=limits[1])
    _, told = refused.communicate()
    assert refused.returncode == 1
    assert told.startswith(f"error: data.local: the cache {tmp_path / 'cache'}")
    assert "data.cache_limit" in told
    assert len(told.splitlines()) == 1
    (leftover,) = [tmp_path / "cache" / read_name(tmp_path) / ".shard.1234.arriving"]
    leftover.touch()
    first.kill()
    first.wait()
    assert reads_all(start("c", limit=limits[1]))
    assert not leftover.exists()


def read_name(folder: Path) -> str:
    (found,) = (folder / "cache").iterdir()
    return found.name
