# SPDX-License-Identifier: Apache-2.0
"""The guard through the main job's door: exit codes, one line, and what lies there afterwards."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from job import BIN, run

# A factor that float32 does not hold: while the alignment acts, no batch has a finite loss.
BOOM = ("alignment.weight=1e39", "precision=fp32")


@pytest.fixture(scope="module")
def data(demo_data) -> Path:
    return demo_data(64)


def train(data: Path, folder: Path, *overrides: str, ranks: int = 1) -> Any:
    command = [sys.executable] if ranks == 1 else [str(BIN / "composer"), "-n", str(ranks)]
    places = (f"output_dir={folder / 'run'}", f"checkpoint.save_folder={folder / 'saved'}")
    few = ("global_train_batch_size=8", "data.num_workers=1", "optimizer.warmup=0ba")
    quiet = ("sampling.interval=null", "logging.interval=1ba")
    given = (f"data.local={data}", *places, *few, *quiet, *overrides)
    return run(*command, "train.py", "yamls/demo-ahpa.yaml", *given)


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run" / name).read_text().splitlines()]


def test_bad_batches_are_skipped_and_the_rest_is_trained(data: Path, tmp_path: Path):
    acts = ("alignment.start=2ba", "alignment.until=4ba")
    done = train(data, tmp_path, *BOOM, *acts, "max_duration=6ba")
    assert done.returncode == 0, done.stderr
    rows = lines(tmp_path, "metrics.jsonl")
    assert [row["batch"] for row in rows if row["loss/train/total"] is None] == [3, 4]
    assert [row["batch"] for row in rows if row.get("guard/nonfinite")] == [3, 4]
    told = lines(tmp_path, "guard.jsonl")
    assert [(one["batch"], one["action"]) for one in told] == [(3, "skip"), (4, "skip")]
    assert all(len(set(one["samples"])) == 8 for one in told)
    assert "guard: loss or gradient not finite in batch 3" in done.stderr


def test_a_rollback_asks_for_the_same_command_and_stops_when_that_does_not_help(
    data: Path, tmp_path: Path
):
    command = (*BOOM, "alignment.start=3ba", "max_duration=6ba", "checkpoint.save_interval=2ba")
    command += ("guard.nonfinite=rollback", "checkpoint.autoresume=true")
    first = train(data, tmp_path, *command, ranks=2)
    assert first.returncode == 76, first.stderr + first.stdout
    second = train(data, tmp_path, *command)
    assert second.returncode == 70, second.stderr + second.stdout
    told = lines(tmp_path, "guard.jsonl")
    assert [(one["batch"], one["action"]) for one in told] == [(4, "rollback"), (4, "stop")]
    assert sorted(told[0]["samples"]) == sorted(told[1]["samples"])
    for done, words in ((first, "of batch 2"), (second, "1 rollback(s) to this checkpoint")):
        (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert words in error
        assert "Traceback" not in done.stderr + done.stdout
    ends = [one for one in lines(tmp_path, "history.jsonl") if one["event"] == "end"]
    assert [(one["batch"], one["exit_code"]) for one in ends] == [(4, 76), (4, 70)]
    assert "start again with checkpoint.autoresume=true" in ends[0]["reason"]
    # The step was left out, so what is saved is sound.
    assert sorted(p.name for p in (tmp_path / "saved").glob("ba*")) == ["ba2"]


def test_a_run_out_of_time_is_a_success_that_can_be_gone_on_with(data: Path, tmp_path: Path):
    common = ("max_duration=4ba", "checkpoint.save_interval=100ba")
    done = train(data, tmp_path, *common, "guard.time_limit=1s")
    assert done.returncode == 0, done.stderr
    assert "guard: the time limit of 1 s has passed at batch 1; the run ends" in done.stderr
    assert (tmp_path / "saved" / "ba1" / "manifest.json").exists()
    done = train(data, tmp_path, *common, "checkpoint.autoresume=true")
    assert done.returncode == 0, done.stderr
    assert [row["batch"] for row in lines(tmp_path, "metrics.jsonl")] == [1, 2, 3, 4]
