# SPDX-License-Identifier: Apache-2.0
"""Models are opened to draw from: from a run, its checkpoints, exported files and stores.

Legend: B batch, C channels, H W.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
import torch
from evaluated_run import model_of
from safetensors.torch import load_file, save_file

from ahpa_scale.checkpoint.find import find_checkpoint
from ahpa_scale.checkpoint.manifest import MANIFEST
from ahpa_scale.cli import main
from ahpa_scale.data.card import read_card
from ahpa_scale.errors import UserError
from ahpa_scale.models.description import DESCRIPTION, ModelDescription
from ahpa_scale.run.drawable import open_model


def inputs(batch: int = 3) -> tuple[torch.Tensor, ...]:
    x_BCHW = torch.randn(batch, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    return x_BCHW, torch.linspace(0.1, 0.9, batch), torch.arange(batch)


@torch.no_grad()
def velocities(model) -> torch.Tensor:
    return model(*inputs())


def exported(checkpoints: Path, out: Path, *words: str) -> Path:
    with pytest.raises(SystemExit) as ended:
        main(["checkpoints", "export", str(checkpoints), str(out), *words])
    assert not ended.value.code
    return out


def test_a_run_a_checkpoint_and_an_exported_file_are_the_same_model(trained: Path, tmp_path):
    run = trained / "run"
    expected = velocities(model_of(run / "checkpoints" / "ba6", trained / "data").dit)
    # None of these have the data set, or their run's folder, at hand.
    moved = shutil.copytree(run / "checkpoints", tmp_path / "moved")
    file = exported(moved, tmp_path / "alone" / "w.safetensors")
    places = [run, run / "checkpoints", run / "checkpoints" / "ba6", moved, file]
    opened = [open_model(str(place)) for place in places]
    card = read_card(trained / "data")
    for each in opened:
        assert torch.equal(velocities(each.backbone), expected)
        assert each.description == opened[0].description
        assert (each.backbone.in_channels, each.backbone.input_size) == (8, 8)
        assert each.backbone.null_label == each.backbone.num_classes == 8
        assert not any(p.requires_grad for p in each.backbone.parameters())
    told = opened[0].description
    assert (told.depth, told.width, told.heads, told.patch_size) == (3, 192, 3, 2)
    assert told.classes == card.classes
    assert (told.scaling, told.vae_identity) == (card.scaling, card.vae.identity)
    assert (told.vae, told.batch, told.kind, told.convention) == ("demo", 6, "ema", "velocity")
    assert opened[0].place == str(run / "checkpoints" / "ba6")


def test_the_trained_weights_are_another_model_than_their_averages(trained: Path, tmp_path):
    run = trained / "run"
    plain = open_model(str(run), "model")
    assert plain.description.kind == "model"
    expected = velocities(model_of(run / "checkpoints" / "ba6", trained / "data", "model").dit)
    assert torch.equal(velocities(plain.backbone), expected)
    assert not torch.equal(expected, velocities(open_model(str(run), "ema").backbone))
    file = exported(run / "checkpoints", tmp_path / "w.safetensors", "--kind", "model")
    assert open_model(str(file)).description.kind == "model"
    with pytest.raises(UserError, match="holds the kind 'model' only, not 'ema'"):
        open_model(str(file), "ema")


def test_a_store_is_read_like_a_disk(trained: Path, tmp_path):
    expected = velocities(open_model(str(trained / "run")).backbone)
    store = fsspec.filesystem("memory")
    store.put(str(trained / "run/checkpoints"), "/drawn/checkpoints", recursive=True)
    file = exported(trained / "run/checkpoints", tmp_path / "w.safetensors")
    store.put(str(file), "/drawn/w.safetensors")
    for url in ("memory://drawn/checkpoints", "memory://drawn/w.safetensors"):
        assert torch.equal(velocities(open_model(url).backbone), expected)
    with pytest.raises(UserError, match=r"there is nothing at memory://drawn/none\.safetensors"):
        open_model("memory://drawn/none.safetensors")


def test_an_older_checkpoint_asks_its_data_set(trained: Path, saved: Path):
    url = find_checkpoint(str(saved)).url
    manifest = find_checkpoint(url).manifest
    assert manifest is not None
    Path(url, MANIFEST).write_text(replace(manifest, data_set=None).to_json())
    told = open_model(url).description
    assert told == open_model(str(trained / "run")).description
    data = {**manifest.config["data"], "local": str(saved / "gone")}
    gone = replace(manifest, data_set=None, config={**manifest.config, "data": data})
    Path(url, MANIFEST).write_text(gone.to_json())
    told = open_model(url).description
    assert (told.classes, told.scaling, told.num_classes) == ((), None, 8)


def test_a_file_without_a_description_needs_the_runs_configuration(trained: Path, tmp_path):
    file = exported(trained / "run/checkpoints", tmp_path / "here/w.safetensors")
    save_file(load_file(file), file, metadata={"format": "pt", "kind": "ema", "batch": "6"})
    with pytest.raises(UserError, match=r"no config\.yaml in "):
        open_model(str(file))
    shutil.copy(trained / "run" / "config.yaml", file.parent)
    opened = open_model(str(file))
    assert opened.description == open_model(str(trained / "run")).description


def test_weights_that_belie_their_description_are_refused(trained: Path, tmp_path):
    file = exported(trained / "run/checkpoints", tmp_path / "w.safetensors")
    weights, told = load_file(file), open_model(str(file)).description
    for changed, said in (
        (replace(told, depth=4), "lacks 'blocks.3"),
        (replace(told, depth=2), "has a strange 'blocks.2"),
        (replace(told, num_classes=9, classes=()), "size mismatch for y_embedder"),
    ):
        save_file(weights, file, metadata={DESCRIPTION: changed.to_json()})
        with pytest.raises(UserError, match=said):
            open_model(str(file))
    save_file(weights, file, metadata={DESCRIPTION: "{"})
    with pytest.raises(UserError, match=r"the model's description in .* is not JSON"):
        open_model(str(file))
    # A model of the largest size that may be told costs no memory before it is refused.
    huge = ModelDescription(1000, 99_840, 16, 2, 64, 4, 10**7)
    save_file(weights, file, metadata={DESCRIPTION: huge.to_json()})
    with pytest.raises(UserError, match="belongs to another configuration"):
        open_model(str(file))


def test_what_is_no_model_is_one_line(tmp_path):
    with pytest.raises(UserError, match="there is nothing at"):
        open_model(str(tmp_path / "none"))
    (tmp_path / "w.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="is no safetensors file"):
        open_model(str(tmp_path / "w.safetensors"))
    with pytest.raises(UserError, match="is no checkpoint and holds none that is whole"):
        open_model(str(tmp_path))
