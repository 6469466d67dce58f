# SPDX-License-Identifier: Apache-2.0
"""The embedded VAE, and training a VAE end to end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import typer

from ahpa_scale.cli import app
from ahpa_scale.data.demo import PRESETS
from ahpa_scale.data.demo.mixture import held_out
from ahpa_scale.data.sources import Picture
from ahpa_scale.data.vae_release import measure_psnr
from ahpa_scale.data.vae_training import VAETraining, train_vae
from ahpa_scale.errors import UserError
from ahpa_scale.models.vae import FrozenVAE
from ahpa_scale.models.vae_config import (
    DEMO_VAE_FOLDER,
    LatentScaling,
)


def test_embedded_vae_is_small_and_good() -> None:
    files = [path for path in DEMO_VAE_FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 4 * 1024**2
    vae = FrozenVAE.from_pretrained("demo")
    assert (vae.downsample, vae.latent_channels) == (4, 8)
    assert next(vae.parameters()).dtype == torch.float32
    sets = held_out(12345, 32, 64)
    psnr = measure_psnr(vae, sets)
    assert set(psnr) == {*PRESETS, "grey objects"}
    assert min(psnr.values()) >= 25.0, psnr
    scaling = LatentScaling.from_config(vae.config)
    z = scaling.normalise(vae.encode(torch.from_numpy(sets["easy"])).mean_BCHW)
    assert 0.6 < z.std().item() < 1.4


class Noise:
    """Twelve pictures of noise, as a picture source."""

    classes = ("noise",)
    description = "noise"
    external_channels = None

    def __len__(self) -> int:
        return 12

    def read(self, position: int) -> Picture:
        pixels = np.random.default_rng(position).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        return Picture(str(position), pixels, 0)


SMALL = VAETraining(
    block_out_channels=(8, 16),
    norm_num_groups=4,
    steps=3,
    batch_size=4,
    pool=8,
    unseen=4,
    precision="fp32",
)


def test_train_vae_end_to_end(tmp_path: Path) -> None:
    out = tmp_path / "made" / "vae"
    report = train_vae(out, "demo", SMALL, progress=False)
    assert len(report.psnr) == 8
    assert sorted(path.name for path in out.parent.iterdir()) == ["vae"]
    vae = FrozenVAE.from_pretrained(out)
    assert vae.config["scaling_factor"] == pytest.approx(report.scaling_factor)
    assert vae.downsample == 2
    card = (out / "README.md").read_text()
    assert "ahpa-scale train-vae demo --out" in card
    assert "--widths 8,16 --steps 3 --batch-size 4" in card
    assert f"{report.psnr['easy, 32 px']:.2f}" in card
    with pytest.raises(ValueError, match="exists already"):
        train_vae(out, "demo", SMALL, progress=False)
    again = train_vae(out, "demo", SMALL, overwrite=True, progress=False)
    assert again == report
    assert FrozenVAE.from_pretrained(out).identity == vae.identity


def test_train_vae_on_pictures_of_a_source(tmp_path: Path) -> None:
    report = train_vae(tmp_path / "vae", Noise(), SMALL, progress=False)
    assert set(report.psnr) == {"unseen"}
    assert 5.0 < report.psnr["unseen"] < 20.0
    assert "FOLDER --size 16" in (tmp_path / "vae" / "README.md").read_text()
    deep = replace(SMALL, block_out_channels=(8,) * 6)
    with pytest.raises(ValueError, match="16 pixels do not divide by 32"):
        train_vae(tmp_path / "deep", Noise(), deep, progress=False)


def test_an_error_in_training_leaves_the_bar_on_a_line_of_its_own(tmp_path: Path, capfd) -> None:
    class Torn(Noise):
        def read(self, position: int) -> Picture:
            if position < 11:  # the last one is kept for measuring
                raise KeyError("torn")
            return super().read(position)

    with pytest.raises(KeyError, match="torn") as held:
        train_vae(tmp_path / "vae", Torn(), SMALL)
    told = capfd.readouterr().err
    assert "VAE:   0%" in told
    assert told.endswith("\n"), held


def test_train_vae_spares_what_is_not_a_vae(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=str(tmp_path)):
            train_vae(tmp_path, "demo", SMALL, overwrite=overwrite, progress=False)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    with pytest.raises(ValueError, match="unknown picture source"):
        train_vae(tmp_path / "vae", "dmeo", SMALL, progress=False)
    assert not (tmp_path / "vae").exists()


def test_what_it_can_not_write_to_or_train_on_is_told_before_it_trains(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    trained = mock.Mock(side_effect=AssertionError("trained"))
    with mock.patch("ahpa_scale.data.vae_training._pictures", trained):
        with pytest.raises(NotADirectoryError, match="file"):
            train_vae(tmp_path / "file" / "vae", "demo", SMALL, progress=False)
        with pytest.raises(UserError, match="device 'cuda:99' cannot be used here"):
            train_vae(tmp_path / "vae", "demo", replace(SMALL, device="cuda:99"), progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"block_out_channels": ()}, "at least one width"),
        ({"block_out_channels": (8, 12)}, "does not divide into 8 groups"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"precision": "fp16"}, "precision must be"),
    ],
)
def test_bad_training_settings_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VAETraining(**change)


def test_the_command_has_the_embedded_vaes_settings_as_defaults():
    """Otherwise the card's command would not make the VAE that it describes."""
    command = typer.main.get_command(app).commands["train-vae"]
    defaults = {option.name: option.default for option in command.params}
    settings = VAETraining()
    assert defaults["widths"] == ",".join(str(width) for width in settings.block_out_channels)
    for name in ("latent_channels", "steps", "batch_size", "lr", "kl_weight", "seed"):
        assert defaults[name] == getattr(settings, name), name
