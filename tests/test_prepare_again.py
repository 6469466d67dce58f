# SPDX-License-Identifier: Apache-2.0
"""`ahpa-scale prepare` on several devices, killed anywhere and started again: the same bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from job import CLI, ROOT, run, variables, warmed
from s3_server import BUCKET, s3_server

from ahpa_scale.data.card import read_card
from ahpa_scale.data.prepare import prepare
from ahpa_scale.data.settings import PrepareSettings
from ahpa_scale.errors import UserError

COUNT = 80
#: Shards of five pictures.
WORDS = ("prepare", "demo", "--num-samples", COUNT, "--size", 32, "--batch-size", 4,
         "--shard-size", "40kb", "--scaling", "channel", "--no-progress")  # fmt: skip
#: More for a longer look: AHPA_KILLS=10.
KILLS = int(os.environ.get("AHPA_KILLS", "3"))


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    """The files of a preparation that nobody interrupts, in one process."""
    out = tmp_path_factory.mktemp("whole") / "set"
    done = run(CLI, *WORDS, "--out", out)
    assert done.returncode == 0, done.stderr
    files = content(out)
    assert len([name for name in files if name.endswith(".mds")]) > 8
    return files


def kept(out: Path) -> Path:
    return out.parent / f".{out.name}.partial-kept"


def shards_done(out: Path) -> int:
    return len([p for p in kept(out).glob(".preparing/*.json") if p.stem.isdecimal()])


def children(pid: int) -> list[int]:
    told = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in told.split()]


def killed(out: Path, devices: str, shards: int, chance: random.Random) -> None:
    """Starts the command, and kills one of its processes once so many shards are done."""
    words = warmed(CLI, *WORDS, "--out", out, "--devices", devices)
    with subprocess.Popen(
        list(map(str, words)), cwd=ROOT, env=variables(), stderr=subprocess.PIPE, text=True
    ) as job:
        while job.poll() is None and shards_done(out) < shards:
            time.sleep(0.01)
        if job.poll() is None:
            # Also multiprocessing's own helper, whose end nobody may notice.
            victim = chance.choice([job.pid, *children(job.pid)])
            os.kill(victim, signal.SIGKILL)
        _, told = job.communicate()
    if job.returncode not in (0, -signal.SIGKILL):
        assert job.returncode == 1, told
        assert told.splitlines()[-1].endswith("; the same command goes on")


@pytest.mark.parametrize("seed", range(KILLS))
def test_killed_anywhere_and_started_again_it_makes_the_same_bytes(whole, tmp_path, seed):
    chance, out = random.Random(seed), tmp_path / "set"
    first = ["cpu:2", "cpu:1", "cpu:3"][seed % 3]
    killed(out, first, chance.randrange(1, 8), chance)
    if not out.exists():
        before = shards_done(out)
        again = run(CLI, *WORDS, "--out", out, "--devices", chance.choice(["cpu:1", "cpu:2"]))
        assert again.returncode == 0, again.stderr
        assert before > 0
    assert content(out) == whole
    assert os.listdir(tmp_path) == ["set"]


def test_what_was_begun_goes_on_only_with_the_same(whole, tmp_path):
    out = tmp_path / "set"
    killed(out, "cpu:1", 3, random.Random(1))
    if out.exists():
        pytest.skip("it was faster than its killer")
    options = {"size": 32, "vae_path": "demo", "progress": False, "num_samples": COUNT}
    with pytest.raises(UserError, match=r"other options.*remove .*\.set\.partial-kept, or choose"):
        prepare("demo", str(out), **{**options, "num_samples": 8})
    with pytest.raises(
        UserError,
        match="was begun with shard_size 40kb, batch_size 4, cpu, and this is shard_size 64mb",
    ):
        prepare("demo", str(out), scaling="channel", **options)
    done = run(CLI, *WORDS, "--out", out, "--overwrite")
    assert done.returncode == 0, done.stderr
    assert content(out) == whole


def test_a_store_keeps_what_is_done(whole, tmp_path):
    (tmp_path / "store").mkdir()
    out, local = f"s3://{BUCKET}/set", tmp_path / "copy"
    with s3_server(tmp_path / "store") as server:
        env = {**variables(), **server.environment}
        words = [str(word) for word in warmed(CLI, *WORDS, "--out", out)]
        with subprocess.Popen(words, cwd=ROOT, env=env, stderr=subprocess.PIPE) as job:
            while job.poll() is None and "set/.preparing/3.json" not in server.keys("set"):
                time.sleep(0.02)
            job.kill()
            job.communicate()
        done = run(CLI, *WORDS, "--out", out, "--devices", "cpu:2", environment=server.environment)
        assert done.returncode == 0, done.stderr
        for key in server.keys("set"):
            path = local / Path(key).relative_to("set")
            path.parent.mkdir(parents=True, exist_ok=True)
            server.client().download_file(BUCKET, key, str(path))
    assert content(local) == whole


def test_one_at_a_time(tmp_path):
    out = tmp_path / "set"
    words = [str(w) for w in warmed(CLI, *WORDS, "--out", out)]
    with subprocess.Popen(words, cwd=ROOT, env=variables(), stderr=subprocess.PIPE) as job:
        while job.poll() is None and not (kept(out) / ".preparing" / "running").exists():
            time.sleep(0.01)
        os.kill(job.pid, signal.SIGSTOP)
        second = run(CLI, *WORDS, "--out", out)
        os.kill(job.pid, signal.SIGCONT)
        job.communicate()
    assert second.returncode == 2
    assert f"another process is preparing {out}" in second.stderr
    assert job.returncode == 0
    assert read_card(out).num_samples == COUNT


@pytest.mark.parametrize("devices", ["cuda", "gpu:2", "cpu:0", "2", "cpu:x", "mps:1"])
def test_devices_are_a_kind_and_a_number(devices):
    with pytest.raises(UserError, match="give a kind and how many, such as cuda:8 or cpu:2"):
        PrepareSettings(source="demo", out="x", vae_path="demo", size=32, devices=devices)


def test_one_device_or_several():
    with pytest.raises(UserError, match="device cuda:1 and devices cuda:2: give one of them"):
        PrepareSettings(
            source="demo", out="x", vae_path="demo", size=32, device="cuda:1", devices="cuda:2"
        )


def test_a_mistake_that_a_process_finds_is_one_line(tmp_path):
    words = [*WORDS, "--out", tmp_path / "set", "--devices", "cpu:2", "--features", "oracle"]
    done = run(CLI, *words, "--grid", 3)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
