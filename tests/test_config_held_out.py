# SPDX-License-Identifier: Apache-2.0
"""The evaluation section against its data set, before anything heavy is imported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from small_run import SD_VAE

from ahpa_scale.config.checks.held_out import check_held_out, check_reference, pictures_of
from ahpa_scale.config.errors import ConfigError
from ahpa_scale.data.card import DatasetCard, VaeInfo, write_card
from ahpa_scale.models.vae_config import LatentScaling

NAMES = tuple(f"class {label:03d}" for label in range(1000))
CARD = DatasetCard(
    kind="latents",
    num_samples=100,
    classes=NAMES,
    image_size=256,
    latent_shape=(4, 32, 32),
    grid=16,
    vae=VaeInfo("stabilityai/sd-vae-ft-mse", "0" * 16, 8, 4),
    scaling=LatentScaling.from_config(SD_VAE),
    levels=(),
    prior_dtype="float16",
    external_channels=None,
    source="test",
    fingerprint="a" * 16,
    version="0",
)


DRAWN = ["evaluation.samples=10", "evaluation.reference=x.npz"]


def held_out(folder: Path, **changes: object) -> str:
    write_card(folder, replace(CARD, fingerprint="b" * 16, **changes))
    return f"evaluation.data={folder}"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["evaluation.interval=10ba"], "evaluation.data and evaluation.samples are null"),
        (["evaluation.pictures=10"], "evaluation.data is null"),
        (["evaluation.data=x", "evaluation.pictures=0"], "evaluation.pictures: 0"),
        (["evaluation.data=x", "evaluation.interval=0.1dur"], "evaluation.interval"),
        (["evaluation.data=s3:/x"], "did you mean s3://x?"),
        (["evaluation.reference=x.npz"], "evaluation.samples is null"),
        (["evaluation.features=efficientnet-lite0"], "evaluation.samples is null"),
        (["evaluation.samples=10"], "`ahpa-scale compare PICTURES --save-statistics FILE.npz`"),
        ([*DRAWN, "evaluation.reference=x"], "evaluation.reference: "),
        ([*DRAWN, "evaluation.features=efficientnet-lite0@8"], "evaluation.features: efficient"),
        ([*DRAWN, "evaluation.features=inception,efficientnet-lite0"], "name one network"),
        ([*DRAWN, "sampling.classes=[0]"], "sampling.interval is null"),
        ([*DRAWN, "sampling.preset=sit-ode-dopri5"], "chooses its steps by itself"),
    ],
)
def test_what_would_do_nothing_or_is_a_slip_is_refused(overrides, words, complaint):
    assert words in complaint(*overrides)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "images"}, "holds images: prepare it with --kind latents"),
        ({"vae": VaeInfo("/other", "1" * 16, 8, 4)}, "was made with another VAE, '/other', than"),
        (
            {"latent_shape": (4, 16, 16), "image_size": 128},
            "holds latents [4, 16, 16], and the run's data [4, 32, 32]",
        ),
        ({"num_samples": 9}, "gives 9 pictures, which can't fill 10 bins of the noise level"),
        ({"classes": (*NAMES[:-1], "emu")}, "has the class 'emu', which is none of the 1000"),
    ],
)
def test_held_out_data_that_do_not_fit_are_refused(load, tmp_path, changes, words):
    config = load(held_out(tmp_path / "set", **changes))
    with pytest.raises(ConfigError) as caught:
        check_held_out(config, CARD, print)
    line = str(caught.value)
    assert "evaluation.data: " in line
    assert words in line
    assert "\n" not in line


def test_classes_are_matched_by_name_and_training_data_are_told(load, tmp_path):
    assert check_held_out(load(), CARD, print) is None
    told: list[str] = []
    config = load(held_out(tmp_path / "set", classes=NAMES[::-1]), "evaluation.pictures=30")
    brought = check_held_out(config, CARD, told.append)
    assert brought is not None
    assert brought.labels == [*range(999, -1, -1)]
    assert pictures_of(config, brought.card) == 30
    assert told == []
    write_card(tmp_path / "own", CARD)
    check_held_out(load(f"evaluation.data={tmp_path / 'own'}"), CARD, told.append)
    assert told == [
        f"warning: evaluation.data {tmp_path / 'own'} is what the run trains on: its loss is not a "
        "held-out one"
    ]
    with pytest.raises(ConfigError, match=r"evaluation.data: .*nowhere"):
        check_held_out(load(f"evaluation.data={tmp_path / 'nowhere'}"), CARD, print)


def test_a_reference_must_be_there(load, tmp_path):
    check_reference(load())
    chosen = ["evaluation.samples=10", f"evaluation.reference={tmp_path / 'real.npz'}"]
    with pytest.raises(ConfigError, match=r"evaluation.reference: there is no file .*real.npz"):
        check_reference(load(*chosen))
    (tmp_path / "real.npz").touch()
    check_reference(load(*chosen))
