# SPDX-License-Identifier: Apache-2.0
"""What an earlier version saved is evaluated, diagnosed and taken up like a run of today."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from evaluated_run import rows_of
from PIL import Image

from ahpa_scale.checkpoint.manifest import Manifest
from ahpa_scale.commands.diagnosis import diagnose
from ahpa_scale.commands.evaluate.rows import settings_digest
from ahpa_scale.config.diagnosis import Diagnosis
from ahpa_scale.config.removed import with_removed
from ahpa_scale.run.main import main
from ahpa_scale.run.trained import find_run


def as_then(config: dict[str, Any]) -> dict[str, Any]:
    """A run's whole configuration in the words of an earlier version."""
    told = with_removed(config)
    told["ema"] |= {"decay": None, "half_life": "5ba"}
    told["logging"] |= {"wandb": True, "wandb_project": "p"}
    told["alignment"] |= {"release": {"ramp": "3ba"}}
    return told


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A run's folder of an earlier version."""
    run = Path(shutil.copytree(trained / "run", tmp_path / "run"))
    told = as_then(yaml.safe_load((run / "config.yaml").read_text()))
    told["checkpoint"]["save_folder"] = str(run / "checkpoints")
    (run / "config.yaml").write_text(yaml.safe_dump(told))
    return run


def test_a_checkpoint_is_evaluated_the_same(saved: Path, evaluate, tmp_path):
    assert evaluate(saved / "ba6")[0] == 0
    path = saved / "ba6" / "manifest.json"
    manifest = Manifest.from_json(path.read_bytes())
    told = as_then(manifest.config)
    told["alignment"]["self_lead"], told["sampling"]["num_per_class"] = 0.2, 2
    path.write_text(replace(manifest, config=told).to_json())
    code, _, warned = evaluate(saved / "ba6", out=tmp_path / "again")
    assert code == 0, warned
    for key in ("alignment.self_lead", "sampling.num_per_class"):
        assert f"{key} is no key any more" in warned
    (now,), (then,) = (rows_of(tmp_path / name) for name in ("again", "out"))
    assert (now["flow"], now["settings"]) == (then["flow"], then["settings"])


def test_rows_go_on_with_as_many_pictures_a_class(trained: Path, evaluate, tmp_path):
    checkpoints, out = trained / "run" / "checkpoints", tmp_path / "out"
    assert evaluate(checkpoints / "ba6")[0] == 0
    (row,) = rows_of(out)
    settings = {**row["settings"], "num_per_class": 2}
    old = {**row, "settings": settings, "settings_hash": settings_digest(settings)}
    (out / "evaluation.jsonl").write_text(json.dumps(old) + "\n")
    code, _, told = evaluate(checkpoints / "ba4")
    assert code == 0, told
    assert [row["settings"] for row in rows_of(out)] == [settings, settings]
    narrow, wide = (Image.open(out / f"samples/step-0000000{batch}.png") for batch in (4, 6))
    assert narrow.height == wide.height
    assert narrow.width < wide.width


def test_a_folder_is_diagnosed_the_same(trained: Path, folder: Path, tmp_path):
    config, place = find_run(str(folder))
    assert (config.ema.decay, config.logging.wandb) == ("5ba", "p")
    assert config.alignment.until == "measured"
    assert place == str(folder / "checkpoints" / "ba6")
    wanted = Diagnosis(str(folder), str(trained / "held-out"), levels=("latent",), progress=False)
    now = diagnose(wanted, str(tmp_path / "now"))
    assert now == diagnose(replace(wanted, checkpoint=str(trained / "run")), str(tmp_path / "then"))


def test_a_run_is_taken_up_by_its_own_saved_configuration(folder: Path):
    chosen = [f"output_dir={folder}", "checkpoint.autoresume=true", "max_duration=7ba"]
    chosen += ["logging.wandb=null", "logging.interval=1ba", "sampling.interval=null"]
    main([str(folder / "config.yaml"), *chosen])
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["batch"] == 7
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert (saved["ema"], saved["logging"]["wandb"]) == ({"decay": "5ba"}, None)
