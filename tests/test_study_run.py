# SPDX-License-Identifier: Apache-2.0
"""Studies that run: paired cells, rows, resumption, and refusals."""

from __future__ import annotations

import fcntl
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composer import Trainer
from composer.core import Callback
from job import run
from PIL import Image
from small_study import ROOT, content, write

from ahpa_scale.config.checks.static import check_data, read_data_card
from ahpa_scale.run.build import build_trainer
from experiments import assets, judges
from experiments.__main__ import main
from experiments.cells import Planner
from experiments.rows import ResultFile
from experiments.runner import Places, data_folders
from experiments.study import Cell, Study, load_study
from experiments.worker import build_dataset, run_cell

NONE, AHPA, REPA = (Cell("demo", variant, 0) for variant in ("none", "ahpa", "repa"))


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A work folder whose data set is built."""
    folder = tmp_path_factory.mktemp("study")
    build_dataset(load_study(write(folder, content())), folder, NONE)
    return folder


def cell_rows(study: Study, work: Path, results: Path, cell: Cell) -> list[dict[str, Any]]:
    """Runs a cell in this process; its rows."""
    file = Places(work, results).rows(study)
    run_cell(study, work, file, cell, Planner(study, work).plan(cell).digest)
    return ResultFile(file).read()


def command(path: Path, work: Path, results: Path, *more: str) -> subprocess.CompletedProcess[str]:
    words = ["run", path, "--work", work, "--results", results, "--jobs", "2", *more]
    return run(sys.executable, "-m", "experiments", *words)


class Recorder(Callback):
    """Notes what a run is fed and where it stands."""

    def __init__(self) -> None:
        self.seen: list[tuple[list[int], torch.Tensor]] = []
        self.flow: list[float] = []
        self.start: dict[str, torch.Tensor] = {}

    def fit_start(self, state, logger):
        self.start = {name: p.detach().clone() for name, p in state.model.dit.named_parameters()}

    def after_forward(self, state, logger):
        outputs = state.outputs
        self.seen.append((state.batch["index"].tolist(), outputs["t"].clone()))
        self.seen.append((state.batch["label"].tolist(), outputs["target"].clone()))

    def after_loss(self, state, logger):
        self.flow.append(float(state.loss["flow"]))


def test_variants_of_a_seed_share_start_order_times_and_noise(work, tmp_path):
    study = load_study(write(tmp_path, content()))
    recorders = []
    for cell in (NONE, AHPA, REPA, Cell("demo", "none", 1)):
        config = Planner(study, work).plan(cell).config
        places = {"output_dir": str(tmp_path / str(cell))}
        saving = config.checkpoint.model_copy(
            update={"save_folder": None, "autoresume": False, "save_interval": "5000ba"}
        )
        config = config.model_copy(update={**places, "checkpoint": saving})
        recorders.append(Recorder())
        card = read_data_card(config)
        trainer = build_trainer(config, card, check_data(config, card), callbacks=[recorders[-1]])
        trainer.fit()
        trainer.close()
    none, *paired, other_seed = recorders
    for one in paired:
        assert one.flow[0] == none.flow[0]
        assert all(torch.equal(one.start[name], p) for name, p in none.start.items())
        assert len(one.seen) == len(none.seen) == 8
        for (ids, tensor), (same_ids, same_tensor) in zip(one.seen, none.seen, strict=True):
            assert ids == same_ids
            assert torch.equal(tensor, same_tensor)
    assert paired[0].flow[-1] != none.flow[-1], "alignment acts"
    assert other_seed.seen[0][0] != none.seen[0][0]
    assert not torch.equal(other_seed.seen[0][1], none.seen[0][1])


def test_a_cell_goes_on_from_its_checkpoint_as_if_undisturbed(work, tmp_path):
    straight = cell_rows(load_study(write(tmp_path, content())), work, tmp_path / "a", AHPA)
    assert [row["step"] for row in straight] == [2, 4]
    other = {"name": "other"}
    # The same run, once stopped at its first checkpoint and then prolonged.
    short = load_study(write(tmp_path, content(checkpoints=[2], **other)))
    cell_rows(short, work, tmp_path / "b", AHPA)
    whole = load_study(write(tmp_path, content(**other)))
    resumed = cell_rows(whole, work, tmp_path / "b", AHPA)
    log = (Planner(whole, work).plan(AHPA).folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["batch"] for line in log] == [1, 2, 3, 4]
    for row, again in zip(straight, resumed, strict=True):
        for key in ("step", "images", "metrics", "curves", "digest"):
            assert row[key] == again[key], key
    assert resumed[1]["seconds"] > resumed[0]["seconds"] > 0


def test_rows_lost_after_the_run_are_made_again_by_the_same_numbers(work, tmp_path):
    study = load_study(write(tmp_path, content(name="lost")))
    first = cell_rows(study, work, tmp_path, NONE)
    file = Places(work, tmp_path).rows(study)
    file.write_text(json.dumps(first[1], sort_keys=True) + "\n")
    second = cell_rows(study, work, tmp_path, NONE)
    assert [row["step"] for row in second] == [4, 2]
    assert second[1]["metrics"] == first[0]["metrics"]


def test_recoverability_maps_are_rows(work, tmp_path):
    maps = [{"variant": "none", "levels": ["encoder.mid_block", "latent", "external"]}]
    study = load_study(write(tmp_path, content(name="maps", maps=maps, flow_bins=2)))
    rows = cell_rows(study, work, tmp_path, NONE)
    assert [(row["kind"], row["step"]) for row in rows] == [("run", 2), ("run", 4), ("map", 4)]
    found = rows[-1]["map"]
    assert found["levels"] == maps[0]["levels"]
    assert found["blocks"] == [1, 2]
    assert np.shape(found["r2_LDT"]) == (3, 2, 2)
    assert np.max(found["r2_LDT"]) > 0


def test_a_map_asked_for_later_is_drawn_of_the_checkpoint(work, tmp_path, monkeypatch):
    maps = [{"variant": "none", "levels": ["encoder.mid_block", "latent"]}]
    told = content(name="revisited", flow_bins=2)
    study = load_study(write(tmp_path, {**told, "maps": maps}))
    at_once = cell_rows(study, work, tmp_path / "at-once", NONE)
    shutil.rmtree(work / "runs" / "revisited")
    cell_rows(load_study(write(tmp_path, told)), work, tmp_path, NONE)
    monkeypatch.setattr(Trainer, "fit", lambda *_: pytest.fail("trained again"))
    later = cell_rows(study, work, tmp_path, NONE)
    assert [row["kind"] for row in later] == ["run", "run", "map"]
    assert later[-1] == at_once[-1]


def test_unconditional_cells_are_judged_without_labels(work, tmp_path):
    study = load_study(
        write(tmp_path, content(name="bare", variants={"none": {"model.num_classes": 1}}))
    )
    (row, _) = cell_rows(study, work, tmp_path, NONE)
    assert "accuracy" not in row["metrics"]
    assert row["metrics"]["fd"] > 0


@pytest.fixture(scope="module")
def whole(work, tmp_path_factory) -> tuple[Path, Path, subprocess.CompletedProcess[str]]:
    """A study run by its command: its file, its results and what it said."""
    folder = tmp_path_factory.mktemp("whole")
    variants = {name: one for name, one in content()["variants"].items() if name != "repa"}
    path = write(folder, content(name="whole", seeds=[0], variants=variants))
    return path, folder / "results", command(path, work, folder / "results")


def test_one_command_runs_a_study(whole):
    _, results, done = whole
    assert done.returncode == 0, done.stderr
    assert "cells 2/2 done" in done.stderr
    rows = ResultFile(results / "whole.jsonl").read()
    floors = {row["name"]: row["metrics"] for row in rows if row["kind"] == "floor"}
    assert set(floors) == {"real", "reconstruction"}
    runs = [row for row in rows if row["kind"] == "run"]
    assert {(row["variant"], row["step"]) for row in runs} == {
        (variant, step) for variant in ("none", "ahpa") for step in (2, 4)
    }
    known = json.loads((results / "whole.configs.json").read_text())
    for row in runs:
        assert set(row["metrics"]) == {*floors["real"], "flow"}
        assert len(row["curves"]["flow_t"]) == 10
        assert (row["curves"]["router"] is None) == (row["variant"] == "none")
        assert row["images"] == 16 * row["step"]
        kind = known[row["digest"]]["alignment"]["kind"]
        assert kind == row["variant"]
    for name in ("demo-ahpa-4.png", "demo-real.png"):
        grid = np.asarray(Image.open(results / "samples" / "whole" / name))
        assert grid.std() > 5


def test_a_complete_study_is_left_alone(whole, work):
    path, results, _ = whole
    before = (results / "whole.jsonl").read_bytes()
    again = command(path, work, results)
    assert again.returncode == 0, again.stderr
    assert "2 cells, 2 complete" in again.stderr
    assert (results / "whole.jsonl").read_bytes() == before


def test_rows_of_another_configuration_are_refused_unless_replaced(whole, work, tmp_path):
    path, results, _ = whole
    study = load_study(path).model_dump(mode="json", exclude={"verdicts"})
    study["variants"]["ahpa"]["alignment.weight"] = 3.0
    before = (results / "whole.jsonl").read_bytes()
    changed = write(tmp_path, study)
    refused = command(changed, work, results)
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert "demo/ahpa/0" in refused.stderr
    assert "alignment.weight was 0.5 and is now 3.0" in refused.stderr
    assert (results / "whole.jsonl").read_bytes() == before
    replaced = command(changed, work, results, "--replace")
    assert replaced.returncode == 0, replaced.stderr
    assert "2 cells, 1 complete" in replaced.stderr
    rows = [row for row in ResultFile(results / "whole.jsonl").read() if row["kind"] == "run"]
    assert len(rows) == 4
    assert len({row["digest"] for row in rows}) == 2


def test_rows_of_another_build_of_the_data_are_refused_unless_replaced(whole, work, tmp_path):
    path, results, _ = whole
    folder = shutil.copytree(results, tmp_path / "results")
    rows = ResultFile(folder / "whole.jsonl").read()
    (build,) = {row["build"] for row in rows if row["kind"] == "run"}
    foreign = [{**row, "build": "elsewhere"} if row["kind"] == "run" else row for row in rows]
    kept = [row for row in foreign if row.get("variant") != "ahpa"]
    file = folder / "whole.jsonl"
    file.write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in kept))
    before = file.read_bytes()
    refused = command(path, work, folder)
    assert refused.returncode == 2
    assert "the rows of demo, seed 0, were judged by another build" in refused.stderr
    assert file.read_bytes() == before
    replaced = command(path, work, folder, "--replace")
    assert replaced.returncode == 0, replaced.stderr
    found = [row for row in ResultFile(file).read() if row["kind"] == "run"]
    assert {row["build"] for row in found} == {build}
    assert len(found) == 4


@pytest.mark.parametrize("grid", ["its own", "99"])
def test_trained_parts_that_are_kept_are_not_trained_again(work, tmp_path, monkeypatch, grid):
    study = load_study(write(tmp_path, content()))
    (root,) = data_folders(study, work)
    monkeypatch.setattr(assets, "KEPT", tmp_path / "assets")
    kept = assets.keep(root)
    names = [folder.name for folder in kept]
    assert names == ["reference", "demo-reference"]
    assert assets.keep(root) == kept, "again, in place of the first"
    if grid != "its own":
        own = tmp_path / "assets" / root.name
        own.rename(own.with_name(f"{root.name.rpartition('-g')[0]}-g{grid}"))
    elsewhere = tmp_path / "work" / "data" / root.name
    shutil.copytree(root, elsewhere, ignore=shutil.ignore_patterns(*names, "dataset.json"))
    monkeypatch.setattr(judges, "build_reference", lambda *_, **__: pytest.fail("trained"))
    monkeypatch.setattr(judges, "build_demo_reference", lambda *_, **__: pytest.fail("trained"))
    build_dataset(study, tmp_path / "work", NONE)
    assert assets.trained_digest(elsewhere) == assets.trained_digest(root)
    judge = next((elsewhere / "reference").rglob("*.safetensors"))
    judge.write_bytes(judge.read_bytes()[:-1] + b"x")
    assert assets.trained_digest(elsewhere) != assets.trained_digest(root)


def test_the_trained_parts_of_a_whole_study_are_kept_by_one_command(work, tmp_path, monkeypatch):
    monkeypatch.setattr(assets, "KEPT", tmp_path / "assets")
    path = write(tmp_path, content())
    assert main(["keep", str(path), "--work", str(work), "--results", str(tmp_path)]) == 0
    assert len(list((tmp_path / "assets").glob("demo-*/reference/judge/*.safetensors"))) == 1


def test_what_another_study_has_run_is_taken_over(whole, work, tmp_path):
    path, results, _ = whole
    folder = shutil.copytree(results, tmp_path / "results")
    study = load_study(path).model_dump(mode="json", exclude={"verdicts"})
    study |= {"name": "later", "variants": {"control": {}}, "checkpoints": [4]}
    later = write(tmp_path, study)
    before = (folder / "whole.jsonl").read_bytes()
    done = command(later, work, folder)
    assert done.returncode == 0, done.stderr
    assert "rows taken over from other studies: 1" in done.stderr
    assert not (work / "runs" / "later").exists(), "nothing was trained"
    (row,) = [row for row in ResultFile(folder / "later.jsonl").read() if row["kind"] == "run"]
    (old,) = [
        row
        for row in ResultFile(folder / "whole.jsonl").read()
        if (row["kind"], row.get("variant"), row.get("step")) == ("run", "none", 4)
    ]
    assert row == {**old, "study": "later", "variant": "control"}
    assert (folder / "whole.jsonl").read_bytes() == before
    assert "1 complete" in command(later, work, folder, "--dry-run").stderr


def test_the_limit_stops_a_study_cleanly(work, tmp_path):
    path = write(tmp_path, content(name="limit", checkpoints=[100_000], variants={"none": {}}))
    begun = time.monotonic()
    done = command(path, work, tmp_path / "r", "--limit-minutes", "0.05")
    assert done.returncode == 0, done.stderr
    assert "time is up: 2 cells are left" in done.stderr
    assert time.monotonic() - begun < 600
    assert all(row["kind"] == "floor" for row in ResultFile(tmp_path / "r" / "limit.jsonl").read())


def test_a_runner_that_is_ended_takes_its_workers_along(work, tmp_path):
    path = write(tmp_path, content(name="ended", checkpoints=[100_000], variants={"none": {}}))
    words = ["run", path, "--work", work, "--results", tmp_path / "r", "--jobs", "1"]
    runner = subprocess.Popen(
        [sys.executable, "-m", "experiments", *map(str, words)], cwd=ROOT, stderr=subprocess.PIPE
    )
    lock = work / "runs" / "ended" / "demo" / "none" / "0" / "worker.lock"
    while not held(lock):
        assert runner.poll() is None
        time.sleep(0.1)
    runner.terminate()
    assert runner.wait(600) == 128 + signal.SIGTERM
    assert not held(lock)


def held(lock: Path) -> bool:
    """Whether a living process has locked a file."""
    if not lock.exists():
        return False
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def test_a_cell_that_fails_is_named_with_its_last_words(work, tmp_path):
    variants = {"bad": {"data.num_canonical_nodes": 3, "global_train_batch_size": 4096}}
    path = write(tmp_path, content(name="fails", seeds=[0], variants=variants))
    done = command(path, work, tmp_path / "r")
    assert done.returncode == 1
    assert "demo/bad/0: failed" in done.stderr
    assert "too few for one batch" in done.stderr
