# SPDX-License-Identifier: Apache-2.0
"""A run on several data sets, and what it is told when they have changed at a resume."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import yaml
from job import FASTEST, run


def test_a_run_on_several_sets_goes_on_only_with_the_same_ones(demo_data, tmp_path: Path):
    first, second = demo_data(64), demo_data(128)
    skip = tmp_path / "skip.txt"
    skip.write_text("3\n4\n")

    def train(duration: str, *overrides: str) -> subprocess.CompletedProcess[str]:
        streams = (
            f"[{{url: {first}, proportion: 3}}, {{url: {second}, proportion: 1, skip: {skip}}}]"
        )
        items = {
            "data.streams": streams,
            "alignment.kind": "none",  # each set's levels have a codec of their own
            "max_duration": duration,
            "data.num_workers": 0,
            "output_dir": tmp_path / "run",
            "checkpoint.save_folder": tmp_path / "checkpoints",
            "checkpoint.autoresume": "true",
            "checkpoint.save_interval": "2ba",
            "logging.interval": "1ba",
            "optimizer.warmup": "0ba",
            "sampling.interval": "null",
            "precision": FASTEST,
        }
        chosen = [f"{key}={value}" for key, value in items.items()]
        return run(sys.executable, "train.py", "yamls/demo-ahpa.yaml", *chosen, *overrides)

    done = train("4ba")
    assert done.returncode == 0, done.stderr
    saved = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["data"]
    assert [stream["proportion"] for stream in saved["streams"]] == [3.0, 1.0]
    assert saved["local"] is saved["remote"] is None
    done = train("6ba")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(row) for row in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["batch"] for row in rows] == [1, 2, 3, 4, 5, 6]
    skip.write_text("3\n")
    refused = train("8ba")
    assert refused.returncode == 2
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert "was trained on other data than" in line
    assert "skipped pictures" in line
    assert "checkpoint.accept_other_data=true" in line
    accepted = train("8ba", "checkpoint.accept_other_data=true")
    assert accepted.returncode == 0, accepted.stderr
    assert "from the beginning of a pass" in accepted.stderr
