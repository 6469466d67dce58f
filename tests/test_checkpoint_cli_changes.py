# SPDX-License-Identifier: Apache-2.0
"""`ahpa-scale checkpoints pull`, `prune` and `export`, on checkpoints damaged in every way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from checkpoint_runs import BATCHES, RANK_0, ToyRun, flip, truncate
from safetensors import safe_open
from safetensors.torch import load_file
from toy_trainer import ToyDiT

from ahpa_scale import storage
from ahpa_scale.algorithms import EMA
from ahpa_scale.checkpoint.manifest import Manifest
from ahpa_scale.checkpoint.saver import Saver
from ahpa_scale.run.trained import load_backbone

NOT_LOCAL = "is not on this machine's own disk: name a local path"


def test_pull_copies_a_checkpoint_byte_by_byte(folder, cli, tmp_path):
    code, out, _ = cli("pull", folder / "ba3", tmp_path / "copy")
    assert code == 0
    assert str(folder / "ba3") in out
    there = {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()}
    assert there == {path.name: path.read_bytes() for path in (folder / "ba3").iterdir()}
    assert cli("verify", tmp_path / "copy")[0] == 0


def test_pull_takes_the_newest_that_proves_whole(folder, cli, tmp_path):
    (folder / "ba6/manifest.json").unlink()
    flip(folder / "ba5" / RANK_0)
    code, out, err = cli("pull", folder, tmp_path / "copy")
    assert code == 0
    assert f"{folder}/ba4" in out
    assert err.count("\n") == 1
    assert err.startswith(f"warning: stepping over {folder}/ba5: {RANK_0} isn't what was saved")
    assert Manifest.from_json((tmp_path / "copy/manifest.json").read_text()).batch == 4


def test_pull_of_what_is_damaged_leaves_nothing(folder, cli, tmp_path):
    flip(folder / "ba5/state.json")
    (folder / "ba6/manifest.json").unlink()
    for name, problem in (("ba5", "state.json isn't what was saved"), ("ba6", "half an upload")):
        code, _, err = cli("pull", folder / name, tmp_path / "copies/one")
        assert code == 2
        assert problem in err.splitlines()[-1]
    assert not list((tmp_path / "copies").iterdir())


def test_what_only_the_connection_spoiled_is_fetched_again(folder, cli, tmp_path, monkeypatch):
    get_file, spoiled = storage.get_file, []

    def spoiling(url, local, *rest):
        get_file(url, local, *rest)
        if url not in spoiled:
            spoiled.append(url)
            flip(local)

    monkeypatch.setattr(storage, "get_file", spoiling)
    assert cli("pull", folder, tmp_path / "copy")[0] == 0
    assert len(spoiled) == 2
    monkeypatch.undo()
    assert cli("verify", tmp_path / "copy")[0] == 0


def test_pull_refuses_a_place_that_is_taken(folder, cli, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/mine").write_text("x")
    code, _, err = cli("pull", folder, tmp_path / "taken")
    assert (code, err) == (2, f"error: {tmp_path}/taken exists already; choose another place\n")
    assert os.listdir(tmp_path / "taken") == ["mine"]
    code, _, err = cli("pull", folder, "s3://bucket/x")
    assert (code, err) == (2, f"error: FOLDER: s3://bucket/x {NOT_LOCAL}\n")


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_prune_keeps_the_newest_and_every_so_many(folder, cli):
    code, out, _ = cli("prune", folder, "--keep", "2", "--every", "3ba", "--dry-run")
    assert code == 0
    told = [line.split(",")[0] for line in out.splitlines()]
    assert told[:-1] == ["would remove ba1", "would remove ba2", "would remove ba4"]
    assert left(folder) == ["ba1", "ba2", "ba3", "ba4", "ba5", "ba6"]
    code, out, _ = cli("prune", folder, "--keep", "2", "--every", "3ba")
    assert code == 0
    told = [line.split(",")[0] for line in out.splitlines()]
    assert told[:-1] == ["removed ba1", "removed ba2", "removed ba4"]
    assert out.endswith(f"{folder}: 3 removed, 3 left, the newest whole is ba6\n")
    assert left(folder) == ["ba3", "ba5", "ba6"]
    assert (folder / "latest").read_text() == "ba6\n"


def test_prune_never_removes_the_newest_that_proves_whole(folder, cli):
    truncate(folder / "ba6" / RANK_0)
    flip(folder / "ba5" / RANK_0)
    (folder / "ba2/manifest.json").unlink()
    code, out, err = cli("prune", folder, "--keep", "1")
    assert code == 0
    assert out.endswith("3 removed, 3 left, the newest whole is ba4\n")
    assert "stepping over" in err
    assert left(folder) == ["ba4", "ba5", "ba6"]
    # Names and sizes alone are what the user asked for here.
    assert cli("prune", folder, "--keep", "1", "--no-verify")[0] == 0
    assert left(folder) == ["ba5", "ba6"]


def test_prune_where_nothing_is_whole_removes_nothing(folder, cli):
    for batch in BATCHES:
        flip(folder / f"ba{batch}" / RANK_0)
    code, out, err = cli("prune", folder, "--keep", "1")
    assert (code, out) == (2, "")
    assert "none of the 5 before is whole" in err
    assert len(left(folder)) == 6


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--keep", "0"), "keep is 0"),
        (("--keep", "-1"), "keep is -1"),
        (("--keep", "1", "--every", "3ep"), "every is '3ep'"),
        (("--keep", "1", "--every", "0ba"), "every is 0"),
    ],
)
def test_prune_refuses_what_makes_no_sense(words, complaint, folder, cli):
    code, _, err = cli("prune", folder, *words)
    assert code == 2
    assert complaint in err
    assert err.count("\n") == 1
    assert len(left(folder)) == 6


def test_prune_wants_the_folder_not_a_checkpoint(folder, cli):
    code, _, err = cli("prune", folder / "ba6", "--keep", "1")
    assert code == 2
    assert "is a checkpoint itself" in err
    assert len(left(folder)) == 6


def test_export_writes_the_averages_by_the_names_of_the_dit(finished, folder, cli, tmp_path):
    out = tmp_path / "made/dit.safetensors"
    code, said, _ = cli("export", folder, out)
    assert code == 0
    assert f"averages of {folder}/ba6" in said
    weights = load_file(out)
    assert weights.keys() == ToyDiT().state_dict().keys()
    for name, average in finished.averages.items():
        assert torch.equal(weights[name], average), name
    with safe_open(str(out), "pt") as file:
        assert file.metadata() == {"format": "pt", "kind": "ema", "batch": "6"}
    assert os.listdir(out.parent) == [out.name]
    fresh = ToyDiT()
    load_backbone(fresh, str(out))  # what `diagnose` does with it
    assert torch.equal(fresh.mix.weight, finished.averages["mix.weight"])


def test_export_of_a_real_dit_fits_another(make_generator, make_trainer, cli, tmp_path):
    saver = Saver(str(tmp_path / "run"), "2ba")
    trainer = make_trainer(max_duration="2ba", callbacks=[saver], algorithms=[EMA(half_life="1ba")])
    trainer.fit()
    (ema,) = trainer.state.algorithms
    out = tmp_path / "dit.safetensors"
    assert cli("export", tmp_path / "run", out)[0] == 0
    other = make_generator(seed=9).dit
    other.load_state_dict(load_file(out), strict=True)
    for name, parameter in other.named_parameters():
        expected = ema.shadow.get(f"dit.{name}")
        assert expected is None or torch.equal(parameter, expected), name


def test_export_of_trained_weights(finished, folder, cli, tmp_path):
    out = tmp_path / "dit.safetensors"
    code, said, _ = cli("export", folder / "ba6", out, "--kind", "model")
    assert code == 0
    assert "trained weights" in said
    weights = load_file(out)
    assert weights.keys() == finished.trained.keys()
    for name, trained in finished.trained.items():
        assert torch.equal(weights[name], trained), name
    assert not torch.equal(weights["mix.weight"], finished.averages["mix.weight"])


def test_export_refuses_a_file_that_is_there(folder, cli, tmp_path):
    out = tmp_path / "dit.safetensors"
    out.write_text("mine")
    code, _, err = cli("export", folder, out)
    assert code == 2
    assert "exists already" in err
    assert out.read_text() == "mine"
    assert cli("export", folder, out, "--overwrite")[0] == 0
    assert load_file(out)


def test_export_verifies_first(folder, cli, tmp_path):
    flip(folder / "ba6" / RANK_0)
    out = tmp_path / "dit.safetensors"
    code, _, err = cli("export", folder / "ba6", out)
    assert code == 2
    assert f"{RANK_0} isn't what was saved" in err
    assert not out.exists()
    code, said, _ = cli("export", folder, out)
    assert code == 0
    assert f"{folder}/ba5" in said


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("dit.pt",), "must end in .safetensors"),
        (("s3://bucket/dit.safetensors",), f"s3://bucket/dit.safetensors {NOT_LOCAL}"),
        (("dit.safetensors", "--kind", "averages"), "unknown kind 'averages'"),
    ],
)
def test_export_refuses_what_it_cannot_do(words, complaint, folder, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = cli("export", folder, *words)
    assert code == 2
    assert complaint in err
    assert os.listdir(tmp_path) == ["checkpoints"]


def test_a_run_without_averages(cli, tmp_path):
    finished = ToyRun(tmp_path / "plain")
    out = tmp_path / "dit.safetensors"
    code, _, err = cli("export", finished.folder, out, "--kind", "ema")
    assert code == 2
    assert f"{finished.folder}/ba6: it has no averages" in err
    assert not out.exists()
    code, said, _ = cli("export", finished.folder, out)
    assert code == 0
    assert "trained weights" in said
    assert torch.equal(load_file(out)["mix.weight"], finished.trained["mix.weight"])
