# SPDX-License-Identifier: Apache-2.0
"""The main job on real pictures: Fashion-MNIST's idx files -> folder -> shards -> a trained DiT."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from job import CLI, FASTEST, ROOT, run
from PIL import Image

IDX = ROOT / ".cache" / "fashion-mnist"


def succeed(*command: object) -> None:
    done = run(*command)
    assert done.returncode == 0, done.stderr


def test_fashion_mnist_from_idx_files_to_samples(tmp_path: Path):
    assert IDX.is_dir(), "the idx files of Fashion-MNIST are missing; `make test` fetches them"
    pictures, data, out = tmp_path / "pictures", tmp_path / "data", tmp_path / "run"
    succeed(CLI, "unpack-idx", IDX, "--out", pictures, "--limit", 3200)
    classes = sorted(folder.name for folder in (pictures / "train").iterdir())
    assert len(classes) == 10
    sizes = [len(list((pictures / "train" / name).iterdir())) for name in classes]
    assert sum(sizes) == 3200
    succeed(CLI, "prepare", pictures / "train", "--size", 32, "--out", data, "--no-progress")
    succeed(
        sys.executable, "train.py", "yamls/fashion-ahpa.yaml",
        f"data.local={data}", f"output_dir={out}", f"checkpoint.save_folder={tmp_path / 'saved'}",
        "max_duration=300ba", "checkpoint.save_interval=300ba", "sampling.interval=300ba",
        "data.num_workers=1", "logging.interval=1ba", f"precision={FASTEST}",
    )  # fmt: skip
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    flow = [row["loss/train/flow"] for row in rows]
    assert len(flow) == 300
    early, late = np.mean(flow[15:25]), np.mean(flow[-10:])
    assert late < 0.75 * early, f"flow loss went from {early:.3f} to {late:.3f}"
    assert rows[-1]["loss/train/alignment"] < rows[20]["loss/train/alignment"] < 0
    (grid,) = (out / "samples").glob("step-*.png")
    pixels = np.asarray(Image.open(grid).convert("RGB")).astype(float)
    assert pixels.std() > 20
