# SPDX-License-Identifier: Apache-2.0
"""The configuration against the card of its data set."""

from __future__ import annotations

from dataclasses import replace

import pytest
from small_run import ROOT, SD_VAE

from ahpa_scale.config.checks.static import check_data, fit_to_data, read_data_card
from ahpa_scale.config.load import ConfigError, load_config, to_yaml
from ahpa_scale.data.card import DatasetCard, LevelInfo, VaeInfo
from ahpa_scale.models.vae_config import LatentScaling, encoder_levels


@pytest.fixture
def card() -> DatasetCard:
    return DatasetCard(
        kind="latents",
        num_samples=10,
        classes=tuple(f"class {i}" for i in range(1000)),
        image_size=256,
        latent_shape=(4, 32, 32),
        grid=16,
        vae=VaeInfo("stabilityai/sd-vae-ft-mse", "0" * 16, 8, 4),
        scaling=LatentScaling.from_config(SD_VAE),
        levels=tuple(LevelInfo(level.name, level.channels) for level in encoder_levels(SD_VAE)),
        prior_dtype="float16",
        external_channels=None,
        source="test",
        fingerprint="f",
        version="0",
    )


OTHER_SCALING = LatentScaling("config", (0.0,) * 4, (0.5,) * 4)


@pytest.mark.parametrize(
    ("overrides", "changes", "key"),
    [
        (["data.online=true"], {}, "data.online"),
        ([], {"kind": "images"}, "data.online"),
        (["model.in_channels=4"], {"latent_shape": (16, 32, 32)}, "model.in_channels"),
        (["model.input_size=64"], {}, "model.input_size"),
        (["model.num_classes=10"], {}, "model.num_classes"),
        (["vae.path=stabilityai/sdxl-vae"], {}, "vae.path"),
        ([], {"scaling": OTHER_SCALING}, "vae.path"),
        ([], {"vae": VaeInfo("/other", "1", 16, 4)}, "vae.path"),
        ([], {"levels": (LevelInfo("encoder.down_blocks.0.resnets.7", 4),)}, "vae.path"),
        (["alignment.kind=ahpa"], {"levels": ()}, "alignment.levels"),
        (["alignment.kind=repa"], {}, "alignment.kind"),
        (["alignment.kind=single", "alignment.level=external"], {}, "alignment.level"),
        (["alignment.kind=ahpa", "model.name=XL/4"], {}, "model.name"),
    ],
)
def test_a_data_set_that_does_not_fit_is_refused(load, card, overrides, changes, key):
    with pytest.raises(ConfigError) as caught:
        check_data(load(*overrides), replace(card, **changes))
    assert caught.value.key == key
    assert caught.value.source


@pytest.mark.parametrize(
    ("overrides", "changes"),
    [
        ([], {}),
        (["alignment.kind=ahpa"], {}),
        (["alignment.kind=latent", "model.name=XL/4"], {"levels": ()}),
        (["alignment.kind=repa"], {"external_channels": 768}),
        (["alignment.kind=ahpa", "data.online=true"], {"kind": "images", "levels": ()}),
        ([], {"scaling": LatentScaling("channel", (0.1,) * 4, (0.5,) * 4)}),
        (["vae.path=unheard-of/vae", "alignment.kind=ahpa"], {}),
    ],
)
def test_a_data_set_that_fits_is_accepted(load, card, overrides, changes):
    check_data(load(*overrides), replace(card, **changes))


def test_what_a_run_leaves_open_is_the_data_sets_and_is_saved(load, card):
    config = load("alignment.kind=ahpa")
    model = config.model
    assert (model.input_size, model.in_channels, model.num_classes) == (None,) * 3
    known = fit_to_data(config, replace(card, classes=("ant", "bee")))
    assert known.model.sizes() == (32, 4, 2)
    assert load(text=to_yaml(known)) == known
    given = load("model.input_size=8", "model.num_classes=1", "model.label_dropout=0.1")
    model = fit_to_data(given, card).model
    assert model.sizes() == (8, 4, 1)


@pytest.mark.parametrize(
    ("overrides", "changes", "key"),
    [
        (["model.name=XL/3"], {}, "model.name"),
        ([], {"latent_shape": (16, 32, 32)}, "model.in_channels"),
        (["sampling.interval=9ba", "sampling.classes=[1000]"], {}, "sampling.classes"),
        (["model.label_dropout=0.5"], {"classes": ("all",)}, "model.label_dropout"),
        (["alignment.kind=ahpa", "alignment.grid={coarse_layout: 17}"], {}, "alignment.grid"),
    ],
)
def test_what_the_data_decide_is_checked_as_if_it_had_been_written(
    load, card, overrides, changes, key
):
    config = load(*overrides)
    with pytest.raises(ConfigError) as caught:
        fit_to_data(config, replace(card, **changes))
    assert caught.value.key.startswith(key)


def test_unknown_vae_gets_its_levels_from_the_data_set(load, card):
    config = load("vae.path=unheard-of/vae", "alignment.kind=ahpa", "alignment.levels=[encoder.x]")
    with pytest.raises(ConfigError, match=r"alignment\.levels"):
        check_data(config, card)


def test_missing_data_says_how_to_prepare_it(load, tmp_path):
    config = load(f"data.local={tmp_path}/nothing")
    with pytest.raises(ConfigError, match=r"data\.local: no data set at .*ahpa-scale prepare"):
        read_data_card(config)
    with pytest.raises(ConfigError, match=r"data\.remote: put your own bucket"):
        read_data_card(load_config([str(ROOT / "yamls" / "dit-xl-ahpa.yaml")]))
