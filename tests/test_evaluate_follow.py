# SPDX-License-Identifier: Apache-2.0
"""`ahpa-scale evaluate` as checkpoints come and go, are damaged, and lie in an object store."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from checkpoint_runs import RANK_0, flip
from evaluated_run import BATCHES, batches_of, command, printed, rows_of
from fault_proxy import ALWAYS, Faults
from job import CLI, variables, warmed
from s3_server import BUCKET

from ahpa_scale import storage
from ahpa_scale.checkpoint import follow
from ahpa_scale.checkpoint.find import StoredCheckpoint, checkpoints_at
from ahpa_scale.checkpoint.follow import Follower, Pace


def test_damaged_ones_are_stepped_over_with_one_warning(saved, evaluate, tmp_path):
    flip(saved / "ba2" / RANK_0)
    flip(saved / "ba6" / "manifest.json")
    (saved / "ba8").mkdir()
    shutil.copy(saved / "ba4" / RANK_0, saved / "ba8")
    code, said, told = evaluate(saved, "--follow", "--every", "1s")
    assert (code, printed(said)) == (0, ["ba4"])
    warnings = [line for line in told.splitlines() if "stepping over" in line]
    assert len(warnings) == 2, told
    assert f"ba2: {RANK_0} isn't what was saved" in warnings[0]
    assert "ba6: manifest.json is damaged" in warnings[1]
    shutil.rmtree(saved / "ba4")
    code, _, told = evaluate(saved, out=tmp_path / "other")
    assert code == 2
    assert told.splitlines()[-1].startswith("error: not one checkpoint at")
    assert not (tmp_path / "other" / "evaluation.jsonl").exists()


def test_the_newest_one_that_is_whole(saved, evaluate, tmp_path):
    flip(saved / "ba6" / RANK_0)
    code, said, told = evaluate(saved, "--newest")
    assert (code, printed(said)) == (0, ["ba4"])
    assert f"stepping over {saved / 'ba6'}: {RANK_0}" in told
    assert evaluate(saved, "--newest")[:2][0] == 0
    assert batches_of(tmp_path / "out") == [4]


def move(source: Path, target: Path) -> None:
    """A checkpoint arrives as a run saves it: the manifest last."""
    target.mkdir()
    for path in sorted(source.iterdir(), key=lambda path: path.name == "manifest.json"):
        storage.write_bytes(target / path.name, path.read_bytes())


def test_following_takes_what_comes_later_and_ends_with_the_runs_last(trained, evaluate, tmp_path):
    saved, out = tmp_path / "saved", tmp_path / "out"

    def run() -> None:
        for batch in BATCHES:
            move(trained / "run" / "checkpoints" / f"ba{batch}", saved / f"ba{batch}")
            while batch < 6 and not (out / "samples" / f"step-{batch:08d}.png").exists():
                time.sleep(0.1)

    saved.mkdir()
    later = threading.Timer(2, run)
    later.start()
    code, said, told = evaluate(saved, "--follow", "--every", "1s")
    later.join()
    assert (code, printed(said)) == (0, ["ba2", "ba4", "ba6"])
    assert told == f"waiting for the first checkpoint at {saved}\n"


def test_following_ends_at_a_batch_or_when_nothing_comes(saved, evaluate, tmp_path):
    shutil.rmtree(saved / "ba6")
    code, said, told = evaluate(saved, "--follow", "--every", "1s", "--until", "4ba")
    assert (code, printed(said), told) == (0, ["ba2", "ba4"], "")
    code, said, told = evaluate(saved, "--follow", "--every", "1s", "--idle", "2s")
    assert (code, printed(said)) == (0, [])
    assert told == f"nothing new at {saved} for 2 s\n"


def test_one_that_is_removed_before_its_turn_is_no_error(saved):
    seen, told = [], []
    follower = Follower(str(saved), lambda one: True, progress=False, tell=told.append)
    for one in follower:
        if one.batch == 2:
            shutil.rmtree(saved / "ba4")
        with follower.brought(one) as folder:
            seen.append((one.batch, folder is not None))
    assert seen == [(2, True), (4, False), (6, True)]
    assert told == []


def test_it_leaves_when_asked_and_goes_on_when_started_again(trained, saved, evaluate, tmp_path):
    out = tmp_path / "out"
    shutil.move(saved / "ba6", tmp_path / "ba6")
    process = subprocess.Popen(
        warmed(CLI, *command(saved, trained / "held-out", out), "--follow", "--every", "30m"),
        env=variables(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 900
        while not (out / "evaluation.jsonl").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        _, told = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 79
    assert time.monotonic() - asked < 600
    assert "SIGTERM: leaving" in told
    before = (out / "evaluation.jsonl").read_text()
    done = batches_of(out)
    shutil.move(tmp_path / "ba6", saved / "ba6")
    code, said, _ = evaluate(saved, "--follow")
    assert code == 0
    assert printed(said) == [f"ba{batch}" for batch in BATCHES if batch not in done]
    assert (out / "evaluation.jsonl").read_text().startswith(before)


def upload(client: Any, folder: Path, name: str) -> None:
    for path in (path for path in folder.rglob("*") if path.is_file()):
        client.upload_file(str(path), BUCKET, f"{name}/{path.relative_to(folder).as_posix()}")


def test_all_of_it_in_an_object_store_that_fails(
    trained, saved, evaluate, tmp_path, server, proxy, url, monkeypatch
):
    flip(saved / "ba4" / RANK_0)
    upload(server.client(), saved, f"{tmp_path.name}/saved")
    upload(server.client(), trained / "held-out", f"{tmp_path.name}/held-out")
    places = {"data": f"{url}/held-out", "out": f"{url}/out"}

    def keys() -> list[str]:
        return [key.partition("/out/")[2] for key in server.keys(f"{tmp_path.name}/out")]

    for faults, there in (
        (Faults(share=1.0, kinds=("500",)), []),
        (
            Faults(cut_uploads=ALWAYS, uploads="evaluation.jsonl", cut_after=100),
            ["samples/step-00000002.png"],
        ),
    ):
        proxy.set(faults)
        with monkeypatch.context() as soon:
            soon.setenv(storage.PATIENCE, "1")
            code, said, told = evaluate(f"{url}/saved", "--follow", **places)
        assert (code, printed(said)) == (75, [])
        assert re.search(r"^error: s3://\S+ does not answer: .* attempts", told.splitlines()[-1])
        assert keys() == there
    proxy.set(Faults(share=0.1), seed=1)
    code, said, told = evaluate(f"{url}/saved", "--follow", **places)
    assert (code, printed(said)) == (0, ["ba2", "ba6"])
    assert f"warning: stepping over {url}/saved/ba4: {RANK_0} isn't what was saved" in told
    samples = [f"samples/step-0000000{batch}.png" for batch in (2, 6)]
    assert keys() == ["evaluation.jsonl", "evaluation.png", *samples]
    code, said, _ = evaluate(f"{url}/saved/ba2", **places)
    assert (code, printed(said)) == (0, [])
    assert evaluate(saved / "ba2")[0] == 0
    row = json.loads(storage.read_text(f"{url}/out/evaluation.jsonl").splitlines()[0])
    assert row == rows_of(tmp_path / "out")[0], "the same as on the disk"


def test_a_store_that_is_away_for_a_while_is_asked_again(saved, monkeypatch):
    seen, told, away = [], [], [True]

    def look(url: str) -> list[StoredCheckpoint]:
        if seen == [2, 4] and away:
            away.clear()
            raise OSError("cannot use s3://x: gone")
        return [one for one in checkpoints_at(url) if one.batch <= 4 or seen == [2, 4]]

    monkeypatch.setattr(follow, "checkpoints_at", look)
    pace = Pace(0.01, None, lambda newest: newest.batch == 6)
    follower = Follower(
        str(saved), lambda one: one.batch not in seen, pace=pace, progress=False, tell=told.append
    )
    for one in follower:
        with follower.brought(one):
            seen.append(one.batch)
    assert seen == BATCHES
    assert told == ["warning: looking again in 0.01 s: cannot use s3://x: gone"]
