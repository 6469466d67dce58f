# SPDX-License-Identifier: Apache-2.0
"""The main job against an object store: a real S3 server on loopback holds data and checkpoints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from job import CLI, ROOT, run
from s3_server import BUCKET, s3_server


def test_data_and_checkpoints_live_in_an_object_store(tmp_path: Path):
    store = tmp_path / "store"
    store.mkdir()
    with s3_server(store) as server:

        def train(name: str, *overrides: str) -> subprocess.CompletedProcess[str]:
            items = {
                "data.remote": f"s3://{BUCKET}/demo",
                "data.local": tmp_path / name / "cache",
                "data.num_workers": 1,
                "output_dir": tmp_path / name / "run",
                "checkpoint.save_folder": f"s3://{BUCKET}/checkpoints/demo-ahpa",
                "checkpoint.save_interval": "4ba",
                "logging.interval": "1ba",
                "optimizer.warmup": "0ba",
                "sampling.interval": "null",
                "precision": "fp32",
            }
            chosen = [f"{key}={value}" for key, value in items.items()]
            command = [sys.executable, "train.py", "yamls/demo-ahpa.yaml", *chosen, *overrides]
            return run(*command, environment=server.environment)

        sizes = ["--size", "32", "--num-samples", "256", "--no-progress"]
        where = ["--out", f"s3://{BUCKET}/demo"]
        done = run(CLI, "prepare", "demo", *sizes, *where, environment=server.environment)
        assert done.returncode == 0, done.stderr
        first = train("first", "max_duration=4ba")
        assert first.returncode == 0, first.stderr
        keys = server.keys()
        assert "demo/dataset.json" in keys
        assert any(key.startswith("checkpoints/demo-ahpa/ba4") for key in keys), keys
        # Another machine: nothing of the first one's disk is there.
        fresh = train("fresh", "max_duration=6ba")
        assert fresh.returncode == 2, "it would have overwritten the first run's checkpoints"
        assert "holds a run already" in fresh.stderr
        second = train("second", "max_duration=6ba", "checkpoint.autoresume=true")
        assert second.returncode == 0, second.stderr
        # And once more on a machine that resumed before: the newest one, not the one seen then.
        third = train("third", "max_duration=8ba", "checkpoint.autoresume=true")
        assert third.returncode == 0, third.stderr
    assert not (ROOT / "s3:").exists()
    for name, batches in (("second", [5, 6]), ("third", [7, 8])):
        rows = (tmp_path / name / "run" / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(row)["batch"] for row in rows] == batches
