# SPDX-License-Identifier: Apache-2.0
"""`ahpa-scale diagnose` on a run of the product itself."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from job import CLI, ROOT, run
from PIL import Image
from safetensors.torch import save_file

from ahpa_scale.checkpoint.weights import read_weights
from ahpa_scale.commands.diagnosis import diagnose
from ahpa_scale.config.diagnosis import Diagnosis
from ahpa_scale.data.card import read_card
from ahpa_scale.data.prepare import prepare
from ahpa_scale.run.build import build_generator
from ahpa_scale.run.main import main
from ahpa_scale.run.trained import find_run, load_backbone

DEMO = {"size": 32, "num_samples": 96, "vae_path": "demo", "features": "oracle", "progress": False}
# tiny/2: 6 blocks of 128 channels, 16 tokens a picture.
WIDTH, DEPTH = 128, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two data sets of the same pictures, and a run of six batches on one of them."""
    place = tmp_path_factory.mktemp("diagnose")
    for kind in ("latents", "images"):
        prepare("demo", str(place / kind), kind=kind, **DEMO)
    run_folder = place / "run"
    main(
        [
            str(ROOT / "yamls" / "demo-ahpa.yaml"),
            "max_duration=6ba",
            "global_train_batch_size=32",
            "data.num_workers=1",
            f"data.local={place / 'latents'}",
            f"output_dir={run_folder}",
            f"checkpoint.save_folder={run_folder / 'checkpoints'}",
            "checkpoint.save_interval=3ba",
            "optimizer.warmup=0ba",
            "ema.decay=0.5",
            "sampling.interval=null",
        ]
    )
    return place


@pytest.fixture(scope="module")
def wanted(folder: Path) -> Diagnosis:
    return Diagnosis(str(folder / "run"), str(folder / "latents"), bins=2, progress=False)


def test_classes_in_another_order_are_matched_by_name_and_others_refused(folder, wanted, tmp_path):
    card = json.loads((folder / "latents" / "dataset.json").read_text())
    names = card["classes"]
    turned = Path(shutil.copytree(folder / "latents", tmp_path / "turned"))
    latent = replace(wanted, levels=("latent",))
    straight = diagnose(latent, str(tmp_path / "a"))
    latent = replace(latent, data=str(turned))
    changed = {**card, "classes": [*names[1:], names[0]]}
    (turned / "dataset.json").write_text(json.dumps(changed))
    assert diagnose(latent, str(tmp_path / "b")) != straight
    (turned / "dataset.json").write_text(json.dumps({**card, "classes": ["emu", *names[1:]]}))
    with pytest.raises(ValueError, match="has the class 'emu', which is none of"):
        diagnose(latent, str(tmp_path / "c"))


def test_it_writes_the_map_of_the_newest_checkpoint(folder, wanted, tmp_path):
    found = diagnose(wanted, str(tmp_path))
    content = json.loads((tmp_path / "recoverability.json").read_text())
    card = read_card(wanted.data)
    assert content["levels"] == [*card.level_names, "latent", "external"]
    assert content["blocks"] == list(range(1, DEPTH + 1))
    assert (content["bins"], content["pictures"], content["source"]) == (2, 96, "all")
    assert content["checkpoint"].endswith("/ba6")
    shape = (len(content["levels"]), DEPTH, 2)
    np.testing.assert_allclose(content["r2_LDT"], np.reshape(found.r2_LDT, shape), atol=1e-6)
    assert np.max(content["r2_LDT"]) > 0.3
    assert np.asarray(Image.open(tmp_path / "recoverability.png")).std() > 5
    latent = replace(wanted, levels=("latent",))
    newest = diagnose(latent, str(tmp_path))
    named = replace(latent, checkpoint=str(folder / "run" / "checkpoints" / "ba6"))
    assert diagnose(named, str(tmp_path)) == newest
    earlier = replace(latent, checkpoint=str(folder / "run" / "checkpoints" / "ba3"))
    assert diagnose(earlier, str(tmp_path)) != newest


def test_it_looks_at_the_averages_and_takes_bare_weights_too(folder, wanted, tmp_path):
    config, place = find_run(str(folder / "run"))
    assert find_run(place) == (config, place), "a checkpoint tells its configuration"
    dit = build_generator(config, read_card(wanted.data)).dit
    load_backbone(dit, place)
    averages, trained = (read_weights(Path(place), kind) for kind in ("ema", "model"))
    for name, value in dit.state_dict().items():
        assert torch.equal(value, averages[f"dit.{name}"])
    bias = "dit.blocks.0.mlp.fc1.bias"
    assert not torch.equal(averages[bias], trained[bias])
    head = next(name for name in trained if name.startswith("attachments."))
    assert torch.equal(averages[head], trained[head]), "only the backbone is averaged"
    bare = tmp_path / "dit.safetensors"
    save_file(dit.state_dict(), bare)
    levels = replace(wanted, levels=("latent",))
    alone = replace(levels, checkpoint=str(bare), config=str(folder / "run" / "config.yaml"))
    assert diagnose(alone, str(tmp_path)) == diagnose(levels, str(tmp_path))


@pytest.mark.parametrize(
    ("source", "levels"),
    [("latent", ["latent"]), ("external", ["external"]), ("self", ["self.3", "self.4", "self.5"])],
)
def test_one_source_is_one_word(source, levels, wanted, tmp_path):
    found = diagnose(replace(wanted, source=source), str(tmp_path))
    assert list(found.levels) == levels
    assert json.loads((tmp_path / "recoverability.json").read_text())["source"] == source


def test_pictures_encoded_online_give_the_map_of_their_cache(folder, wanted, tmp_path):
    online = diagnose(
        replace(wanted, data=str(folder / "images"), source="vae"), str(tmp_path / "a")
    )
    cached = diagnose(replace(wanted, source="vae"), str(tmp_path / "b"))
    np.testing.assert_allclose(online.r2_LDT, cached.r2_LDT, atol=0.01)


def test_the_command_says_what_it_wrote(folder, tmp_path):
    arguments = ["--data", folder / "latents", "--out", tmp_path / "map", "--bins", "2"]
    done = run(CLI, "diagnose", folder / "run", *arguments, "--levels", "latent, self.3")
    assert done.returncode == 0, done.stderr
    assert "2 levels, 6 blocks, 2 bins of t, 96 pictures" in done.stdout
    assert "diagnose" in done.stderr
    assert sorted(p.name for p in (tmp_path / "map").iterdir()) == [
        "recoverability.json",
        "recoverability.png",
    ]
    done = run(CLI, "diagnose", folder / "run", *arguments, "--source", "vea")
    assert done.returncode == 2
    assert "did you mean 'vae'?" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint": "/nowhere"}, "there is nothing at /nowhere"),
        ({"checkpoint": "nosuch://bucket/ba6"}, "unknown storage scheme nosuch://"),
        ({"data": "/nowhere"}, "no data set at /nowhere"),
        ({"levels": ("encoder.midblock",)}, "did you mean 'encoder.mid_block'"),
        ({"levels": ("self.7",)}, "choose one of self.1 to self.6"),
        ({"levels": ("latent", "latent")}, "'latent' is named twice"),
        ({"pictures": 4}, "4 pictures are too few"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used"),
    ],
)
def test_bad_input_earns_one_line(changes, message, wanted, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        diagnose(replace(wanted, **changes), str(tmp_path / "map"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "map").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bins": 0}, "bins must be at least 1"),
        ({"pictures": 0}, "pictures must be at least 1"),
        ({"source": "vea"}, "did you mean 'vae'"),
        ({"source": "vae", "levels": ("latent",)}, "not both"),
    ],
)
def test_bad_options_are_refused_at_once(changes, message, wanted):
    with pytest.raises(ValueError, match=message):
        replace(wanted, **changes)


def test_another_models_weights_and_strange_files_are_refused(folder, wanted, tmp_path):
    config = str(folder / "run" / "config.yaml")
    strange = replace(wanted, config=config, checkpoint=str(tmp_path / "w.safetensors"))
    save_file({"x": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"lacks 'pos_embed': it belongs to another"):
        diagnose(strange, str(tmp_path))
    (tmp_path / "w.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="is no safetensors file"):
        diagnose(strange, str(tmp_path))
    with pytest.raises(ValueError, match=r"no config.yaml in .*--config"):
        diagnose(replace(strange, config=None), str(tmp_path))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="is no checkpoint and holds none"):
        diagnose(replace(strange, checkpoint=str(tmp_path / "nothing")), str(tmp_path))
    (tmp_path / "empty").mkdir()
    shutil.copy(config, tmp_path / "empty" / "config.yaml")
    text = (tmp_path / "empty" / "config.yaml").read_text()
    (tmp_path / "empty" / "config.yaml").write_text(text.replace(str(folder / "run"), "/gone"))
    with pytest.raises(ValueError, match="no checkpoint in"):
        diagnose(replace(wanted, checkpoint=str(tmp_path / "empty")), str(tmp_path))
