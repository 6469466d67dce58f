# SPDX-License-Identifier: Apache-2.0
"""A VAE from a stranger: its folder leads to no other file, and nothing is unpickled."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
from huggingface_hub import constants as hub
from safetensors.torch import load_file, save_file

from ahpa_scale.errors import UserError
from ahpa_scale.models.vae import FrozenVAE
from ahpa_scale.models.vae_config import load_vae_config

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(vae_path, tmp_path) -> Path:
    return Path(shutil.copytree(vae_path, tmp_path / "vae"))


def point_to(folder: Path, name: str) -> None:
    """An index that names one file for every tensor."""
    names = load_file(folder / WEIGHTS)
    told = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, name)}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(told))


@pytest.fixture
def never_unpickled(monkeypatch) -> None:
    monkeypatch.setattr(torch, "load", mock.Mock(side_effect=SystemExit("unpickled")))


@pytest.mark.usefixtures("never_unpickled")
@pytest.mark.parametrize("name", ["weights.bin", "weights.gguf", "../weights.safetensors"])
def test_an_index_names_safetensors_beside_it_only(folder, name):
    torch.save(load_file(folder / WEIGHTS), folder / "weights.bin")
    for path in (folder.parent / "weights.safetensors", folder / "weights.gguf"):
        shutil.copy(folder / WEIGHTS, path)
    for told in (name, str((folder / name).resolve())):
        point_to(folder, told)
        with pytest.raises(UserError, match=r"index\.json names .*: weights are read from"):
            FrozenVAE.from_pretrained(folder)


def test_weights_in_pieces_are_read(folder):
    whole = FrozenVAE.from_pretrained(folder).identity
    piece = "diffusion_pytorch_model-00001-of-00001.safetensors"
    point_to(folder, piece)
    (folder / WEIGHTS).rename(folder / piece)
    assert FrozenVAE.from_pretrained(folder).identity == whole


@pytest.mark.usefixtures("never_unpickled")
def test_what_comes_from_a_hub_is_looked_at_too(folder, tmp_path, monkeypatch):
    copies = tmp_path / "hub/models--some--vae"
    (copies / "refs").mkdir(parents=True)
    (copies / "refs/main").write_text("0" * 40)
    shutil.copytree(folder, copies / "snapshots" / ("0" * 40) / "inside")
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert FrozenVAE.from_pretrained("some/vae/inside").latent_channels == 4
    other = shutil.copytree(copies / "snapshots" / ("0" * 40), copies / "snapshots" / ("1" * 40))
    weights = load_file(other / "inside" / WEIGHTS)
    save_file({name: value + 1 for name, value in weights.items()}, other / "inside" / WEIGHTS)
    (copies / "refs/other").write_text("1" * 40)
    identities = [
        FrozenVAE.from_pretrained(f"some/vae/inside{revision}").identity
        for revision in ("", "@main", "@" + "0" * 40, "@other", "@" + "1" * 40)
    ]
    assert identities[:3] == [identities[0]] * 3
    assert identities[3:] == [identities[3]] * 2 != identities[:2]
    with pytest.raises(UserError, match="cannot load a VAE from 'some/vae/inside@third'"):
        FrozenVAE.from_pretrained("some/vae/inside@third")
    inside = copies / "snapshots" / ("0" * 40) / "inside"
    torch.save(load_file(inside / WEIGHTS), inside / "weights.bin")
    point_to(inside, "weights.bin")
    with pytest.raises(UserError, match="weights are read from"):
        FrozenVAE.from_pretrained("some/vae/inside")


@pytest.mark.parametrize(
    "told",
    [
        {"block_out_channels": [2**40]},
        {"block_out_channels": []},
        {"block_out_channels": "64"},
        {"layers_per_block": 10**9},
        {"latent_channels": -1},
        {"scaling_factor": "nan"},
        {"scaling_factor": 0},
        {"latents_std": [0.0] * 4},
        {"latents_mean": [0.0]},
        {"act_fn": 5},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        {"sample_size": "wide"},
        {"down_block_types": ["NoSuchBlock"] * 3},
        {"norm_num_groups": 7},
    ],
)
def test_a_config_that_no_vae_has_is_one_line(folder, told):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **told}))
    with pytest.raises(UserError) as caught:
        FrozenVAE.from_pretrained(folder)
    assert len(str(caught.value).splitlines()) == 1
    path.write_text("[" * 10**5)
    with pytest.raises(UserError, match=r"no readable config\.json in .*nested deeper"):
        load_vae_config(folder)


def test_weights_that_lack_some_are_not_drawn_at_random(folder):
    weights = load_file(folder / WEIGHTS)
    del weights["decoder.conv_in.bias"]
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(UserError, match="its weights lack 'decoder"):
        FrozenVAE.from_pretrained(folder)
