# SPDX-License-Identifier: Apache-2.0
"""diffusers' own DiT is read, and its own pictures show what differs.

Legend: B batch, C channels, H W.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel
from official_files import inputs
from safetensors.torch import load_file, save_file

from ahpa_scale.errors import UserError
from ahpa_scale.models.vae_config import DEMO_VAE_FOLDER
from ahpa_scale.models.vae_files import WEIGHTS
from ahpa_scale.run.drawable import open_model


def theirs() -> DiTTransformer2DModel:
    """As converted from the official DiT: each block has the same embedders."""
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=3,
        attention_head_dim=64,
        in_channels=8,
        out_channels=16,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=10,
        norm_eps=1e-6,
    )
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn(value.shape) * 0.1)
        first = model.transformer_blocks[0].norm1.emb.state_dict()
        for block in model.transformer_blocks:
            block.norm1.emb.load_state_dict(first)
    return model.eval()


@pytest.fixture
def folder(tmp_path) -> Path:
    """A pipeline's folder, as `DiTPipeline` saves it."""
    place = tmp_path / "dit"
    theirs().save_pretrained(place / "transformer")
    DDIMScheduler(beta_start=1e-4, beta_end=0.02).save_pretrained(place / "scheduler")
    shutil.copytree(DEMO_VAE_FOLDER, place / "vae")
    labels = {str(label): f"class {label}" for label in range(10)}
    (place / "model_index.json").write_text(json.dumps({"id2label": labels}))
    return place


def test_its_network_is_ours_but_for_the_frequencies_of_the_time(folder):
    opened = open_model(str(folder / "transformer"))
    (x, _, y), steps = inputs(channels=8), torch.tensor([99.0, 499.0, 999.0])
    model = theirs()
    with torch.no_grad():
        as_it_is = model(x, steps, y).sample[:, :8]
        for block in model.transformer_blocks:
            assert block.norm1.emb.time_proj.downscale_freq_shift == 1
            block.norm1.emb.time_proj.downscale_freq_shift = 0
        with_the_official_ones = model(x, steps, y).sample[:, :8]
        ours = opened.backbone.model(x, steps, y)
    scale = with_the_official_ones.abs().max()
    assert (ours - with_the_official_ones).abs().max() < 1e-5 * scale
    assert (ours - as_it_is).abs().max() > 1e-3 * scale, "diffusers no longer differs"


def test_its_folder_tells_classes_and_vae(folder):
    told = open_model(str(folder)).description
    assert (told.convention, told.path, told.learn_sigma) == ("dit-eps", "vp", True)
    assert (told.depth, told.width, told.heads, told.input_size) == (2, 192, 3, 8)
    assert told.vae == str(folder / "vae")
    assert told.scaling is not None
    assert told.scaling.kind == "config"
    assert told.class_name(3) == "class 3"


def changed(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_what_is_another_model_is_one_line(folder):
    inner, schedule = folder / "transformer", folder / "scheduler" / "scheduler_config.json"
    weights, config = load_file(inner / WEIGHTS), (inner / "config.json").read_text()

    def refused(said: str) -> None:
        with pytest.raises(UserError, match=said) as caught:
            open_model(str(folder))
        assert "\n" not in str(caught.value)
        (inner / "config.json").write_text(config)
        save_file(weights, inner / WEIGHTS)

    for values, said in (
        ({"_class_name": "UNet2DModel"}, "holds a UNet2DModel"),
        ({"num_layers": 10**9}, "num_layers"),
        ({"num_layers": 3}, r"lacks 'transformer_blocks\.2"),
        ({"num_layers": 1}, r"has a strange 'transformer_blocks\.1"),
        ({"out_channels": 5}, "predicts 5 channels of 8"),
        ({"activation_fn": "silu"}, "activation_fn"),
        ({"patch_size": 3}, "input size 8 is not a multiple of patch size 3"),
    ):
        changed(inner / "config.json", **values)
        refused(said)
    name = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"
    save_file({**weights, name: weights[name] + 1}, inner / WEIGHTS)
    refused("only weights that were converted from the official DiT's can be read")
    (inner / "config.json").write_text("{")
    refused("is not JSON")
    (inner / WEIGHTS).write_bytes(b"no")
    refused("is no safetensors file")
    changed(schedule, beta_schedule="scaled_linear")
    refused("beta_schedule")
