# SPDX-License-Identifier: Apache-2.0
"""Every shipped YAML: parsed strictly; its model built at full size and run forward on meta."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ahpa_scale.config.checks.static import check_data
from ahpa_scale.config.load import load_yaml
from ahpa_scale.config.schema import Config
from ahpa_scale.data.card import DatasetCard, LevelInfo, VaeInfo
from ahpa_scale.models.vae_config import (
    LatentScaling,
    downsample,
    encoder_levels,
    load_vae_config,
)
from ahpa_scale.run.build import build_alignment, build_generator

YAMLS = sorted((Path(__file__).parents[1] / "yamls").glob("*.yaml"))
MILLIONS = {"tiny": 4, "S": 33, "B": 130, "L": 458, "XL": 675}


def card_for(config: Config) -> DatasetCard:
    """The card that `ahpa-scale prepare` would write for this run, from the VAE's config alone."""
    vae = load_vae_config(config.vae.path)
    assert vae is not None
    model = config.model
    # What a YAML leaves open is ImageNet's in the latents of 256 pixels.
    side, channels = model.input_size or 32, model.in_channels or 4
    return DatasetCard(
        kind="latents",
        num_samples=1,
        classes=tuple(str(label) for label in range(model.num_classes or 1000)),
        image_size=side * downsample(vae),
        latent_shape=(channels, side, side),
        grid=side // int(model.name.partition("/")[2]),
        vae=VaeInfo(config.vae.path, "0" * 16, downsample(vae), vae["latent_channels"]),
        scaling=LatentScaling.from_config(vae),
        levels=tuple(LevelInfo(level.name, level.channels) for level in encoder_levels(vae)),
        prior_dtype="float16",
        external_channels=768 if config.alignment.kind == "repa" else None,
        source="test",
        fingerprint="0",
        version="0",
    )


def meta_batch(config: Config, card: DatasetCard, size: int = 2) -> dict[str, torch.Tensor]:
    channels, height, width = card.latent_shape
    maps = {level.name: level.channels for level in card.levels}
    if card.external_channels:
        maps["external"] = card.external_channels
    whole = {name: torch.zeros(size, dtype=torch.int64) for name in ("index", "epoch", "label")}
    return {
        **whole,
        "moments": torch.zeros(size, 2 * channels, height, width, dtype=torch.float16),
        **{
            f"prior.{name}": torch.zeros(size, width_, card.grid, card.grid, dtype=torch.float16)
            for name, width_ in maps.items()
        },
    }


def test_the_promised_files_are_there():
    names = {path.stem for path in YAMLS}
    sizes = {f"dit-{size}-ahpa" for size in ("b", "l", "xl")}
    baselines = {f"dit-xl-{kind}" for kind in ("none", "repa", "latent")}
    assert sizes | baselines | {"demo-ahpa", "fashion-ahpa"} <= names


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_the_model_is_built_at_full_size_and_takes_a_step_forward(path: Path):
    config = load_yaml(path)
    card = card_for(config)
    targets = check_data(config, card)
    with torch.device("meta"):
        generator = build_generator(config, card)
        if config.alignment.kind != "none":
            plug_in = build_alignment(config, card, targets)
            assert plug_in.tap is not None
            generator.attach("alignment", plug_in.build(generator.dit), plug_in.tap, 0.5)
        batch = meta_batch(config, card)
        loss = generator.loss(generator(batch), batch)
        loss["total"].backward()
    size = config.model.name.partition("/")[0]
    millions = sum(p.numel() for p in generator.backbone_parameters()) / 1e6
    assert millions == pytest.approx(MILLIONS[size], rel=0.02 if size != "tiny" else 0.2)
    assert ("alignment" in loss) is (config.alignment.kind != "none")
    assert all(p.grad is not None for p in generator.parameters() if p.requires_grad)


def test_baselines_differ_from_the_recipe_in_the_alignment_alone():
    """Otherwise a comparison between them compares something else too."""
    folder = YAMLS[0].parent
    recipe = load_yaml(folder / "dit-xl-ahpa.yaml").model_dump()
    for kind in ("none", "repa", "latent"):
        baseline = load_yaml(folder / f"dit-xl-{kind}.yaml").model_dump()
        differing = {key for key, value in recipe.items() if baseline[key] != value}
        assert differing <= {"run_name", "alignment", "output_dir", "checkpoint"}, differing
        assert baseline["alignment"]["kind"] == kind
        checkpoints = {**baseline["checkpoint"], "save_folder": recipe["checkpoint"]["save_folder"]}
        assert baseline["checkpoint"] != checkpoints == recipe["checkpoint"]


def test_the_recipe_is_the_published_one():
    config = load_yaml(YAMLS[0].parent / "dit-xl-ahpa.yaml")
    assert config.max_duration == "400000ba"
    assert config.global_train_batch_size == 256
    assert (config.optimizer.lr, config.optimizer.grad_clip) == (2e-4, 2.0)
    assert (config.optimizer.weight_decay, config.optimizer.betas) == (0.0, (0.9, 0.999))
    assert config.alignment.tap == 7
    assert config.ema.decay == 0.9999
