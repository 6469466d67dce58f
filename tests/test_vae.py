# SPDX-License-Identifier: Apache-2.0
"""The frozen VAE: levels against a hand-run encoder, moments, identity, training end to end."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from hypothesis import given
from hypothesis import strategies as st

from ahpa_scale.data.demo import PRESETS
from ahpa_scale.data.demo.mixture import held_out
from ahpa_scale.data.sources import Picture
from ahpa_scale.data.vae_release import measure_psnr
from ahpa_scale.data.vae_training import VAETraining, train_vae
from ahpa_scale.models.vae import FrozenVAE
from ahpa_scale.models.vae_config import (
    ARCHITECTURE_DEFAULTS,
    DEMO_VAE_FOLDER,
    KNOWN_VAES,
    SCALING_DEFAULTS,
    LatentScaling,
    default_groups,
    downsample,
    encoder_levels,
    load_vae_config,
)

# widths, layers per block, latent channels, attention in the middle
ARCHITECTURES = [
    ((8, 16), 1, 4, True),
    ((8, 16, 24), 2, 8, True),
    ((8, 8, 16, 16), 2, 4, True),
    ((8, 8, 8, 8, 16), 1, 16, False),
    ((8, 8, 8, 8, 8, 16), 3, 32, True),
]


def tiny(
    widths: tuple[int, ...] = (8, 16, 16),
    layers: int = 1,
    latent_channels: int = 4,
    attention: bool = True,
    **options: object,
) -> AutoencoderKL:
    """A small random AutoencoderKL."""
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        layers_per_block=layers,
        latent_channels=latent_channels,
        norm_num_groups=4,
        mid_block_add_attention=attention,
        **options,
    )


def hand_run(model: AutoencoderKL, x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The encoder's forward, step by step: the maps of its levels and the moments."""
    encoder, maps = model.encoder, []
    x = encoder.conv_in(x)
    for block in encoder.down_blocks:
        for resnet in block.resnets:
            x = resnet(x, None)
        maps.append(x)
        for sampler in block.downsamplers or []:
            x = sampler(x)
    maps.append(encoder.mid_block(x))
    x = encoder.conv_out(F.silu(encoder.conv_norm_out(maps[-1])))
    return maps, x if model.quant_conv is None else model.quant_conv(x)


@pytest.mark.parametrize(("widths", "layers", "channels", "attention"), ARCHITECTURES)
@torch.no_grad()
def test_levels_and_moments_match_a_hand_run_encoder(
    widths: tuple[int, ...], layers: int, channels: int, attention: bool
) -> None:
    options = {"use_quant_conv": attention, "use_post_quant_conv": attention}
    model = tiny(widths, layers, channels, attention, **options).eval()
    image = torch.rand(2, 3, 64, 64) * 2 - 1
    maps, moments = hand_run(model, image)
    vae = FrozenVAE(model)
    assert vae.downsample == 2 ** (len(widths) - 1)
    assert vae.latent_channels == channels
    names = [level.name for level in vae.levels]
    encoded = vae.encode(image, names, grid=2)
    assert list(encoded.priors) == names
    for level, expected in zip(vae.levels, maps, strict=True):
        assert expected.shape[1] == level.channels
        assert expected.shape[2] == 64 // level.downsample
        found = encoded.priors[level.name]
        pooled = expected.unflatten(2, (2, -1)).unflatten(4, (2, -1)).mean(dim=(3, 5))
        torch.testing.assert_close(found, pooled, rtol=1e-4, atol=1e-5)
    mean, logvar = moments.chunk(2, dim=1)
    torch.testing.assert_close(encoded.mean_BCHW, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoded.std_BCHW, (logvar / 2).exp(), rtol=1e-4, atol=1e-5)
    assert vae.decode(encoded.mean_BCHW).shape == image.shape


def test_the_vae_stays_frozen_and_leaves_no_hooks() -> None:
    vae = FrozenVAE(tiny())
    torch.nn.Sequential(vae).train()
    assert not any(module.training for module in vae.modules())
    assert not any(parameter.requires_grad for parameter in vae.parameters())
    image = torch.zeros(1, 3, 16, 16, requires_grad=True)
    encoded = vae.encode(image, ["encoder.mid_block"], grid=4)
    assert not encoded.mean_BCHW.requires_grad
    assert not encoded.priors["encoder.mid_block"].requires_grad
    with pytest.raises(RuntimeError):
        vae.encode(torch.zeros(1, 5, 16, 16), ["encoder.mid_block"], grid=4)
    assert not any(module._forward_hooks for module in vae.modules())
    # Not inference tensors: training may use them.
    (encoded.mean_BCHW * torch.ones((), requires_grad=True)).sum().backward()


def test_uint8_and_float_pictures_agree() -> None:
    vae = FrozenVAE(tiny())
    pixels = torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8)
    first = vae.encode(pixels)
    second = vae.encode(pixels.float() / 127.5 - 1)
    assert first.priors == {}
    assert first.mean_BCHW.shape == (2, 4, 4, 6)
    torch.testing.assert_close(first.mean_BCHW, second.mean_BCHW)
    again = vae.decode(first.mean_BCHW)
    assert again.dtype == torch.uint8
    assert again.shape == pixels.shape


def test_autocast_changes_precision_not_dtype() -> None:
    vae = FrozenVAE(tiny())
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    exact = vae.encode(pixels, ["encoder.mid_block"], grid=2)
    with torch.autocast("cpu", torch.bfloat16):
        rough = vae.encode(pixels, ["encoder.mid_block"], grid=2)
        assert vae.decode(rough.mean_BCHW).dtype == torch.uint8
    pairs = [(exact.mean_BCHW, rough.mean_BCHW), (exact.std_BCHW, rough.std_BCHW)]
    pairs.append((exact.priors["encoder.mid_block"], rough.priors["encoder.mid_block"]))
    for fine, coarse in pairs:
        assert coarse.dtype == torch.float32
        assert not torch.equal(fine, coarse)
        torch.testing.assert_close(fine, coarse, rtol=0.1, atol=0.05)


def test_priors_keep_the_latent_grid_unless_told() -> None:
    vae = FrozenVAE(tiny())
    encoded = vae.encode(torch.zeros(1, 3, 16, 32), ["encoder.down_blocks.0.resnets.0"])
    assert encoded.priors["encoder.down_blocks.0.resnets.0"].shape == (1, 8, 4, 8)


@pytest.mark.parametrize(
    ("size", "level", "grid", "message"),
    [
        (16, "encoder.midblock", 4, "unknown VAE level .*did you mean 'encoder.mid_block'"),
        (16, "latent", 4, "unknown VAE level 'latent'.*known are encoder"),
        (18, "encoder.mid_block", 4, "18x18 do not divide by the VAE's downsampling of 4"),
        (16, "encoder.mid_block", 5, "grid 5 does not fit a latent of 4x4"),
        (16, "encoder.mid_block", 0, "grid 0 does not fit"),
    ],
)
def test_impossible_requests_are_refused(size: int, level: str, grid: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FrozenVAE(tiny()).encode(torch.zeros(1, 3, size, size), [level], grid)


def test_identity_follows_weights_and_architecture_only(tmp_path: Path) -> None:
    model = tiny()
    identity = FrozenVAE(model).identity
    assert len(identity) == 16
    assert int(identity, 16) >= 0
    assert FrozenVAE(tiny(scaling_factor=0.5, sample_size=64)).identity == identity
    assert FrozenVAE(tiny(latent_channels=8)).identity != identity
    model.save_pretrained(tmp_path / "vae")
    loaded = FrozenVAE.from_pretrained(tmp_path / "vae")
    assert loaded.identity == identity
    assert loaded.config == load_vae_config(tmp_path / "vae")
    with torch.no_grad():
        model.encoder.conv_in.bias[0] += 1e-3
    assert FrozenVAE(model).identity != identity


def test_what_is_no_vae_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no VAE at 'deno': did you mean 'demo'"):
        FrozenVAE.from_pretrained("deno")
    with pytest.raises(ValueError, match="no VAE at 's3://bucket/vae'"):
        FrozenVAE.from_pretrained("s3://bucket/vae")
    with pytest.raises(ValueError, match=r"no readable config\.json"):
        FrozenVAE.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderTiny"}))
    with pytest.raises(ValueError, match="holds a AutoencoderTiny; an AutoencoderKL is needed"):
        FrozenVAE.from_pretrained(tmp_path)
    # Pickled weights are no weights.
    tiny().save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(ValueError, match="cannot load a VAE from"):
        FrozenVAE.from_pretrained(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="cannot load a VAE from 'no-such/vae'") as caught:
        FrozenVAE.from_pretrained("no-such/vae")
    assert "\n" not in str(caught.value)


def test_config_module_needs_no_torch() -> None:
    code = (
        "import sys, ahpa_scale.models.vae_config as c\n"
        "c.encoder_levels(c.load_vae_config('stabilityai/sd-vae-ft-mse'))\n"
        "assert not {'torch', 'diffusers', 'composer'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_defaults_are_those_of_diffusers() -> None:
    signature = inspect.signature(AutoencoderKL.__init__).parameters
    for key, value in (ARCHITECTURE_DEFAULTS | SCALING_DEFAULTS).items():
        assert signature[key].default == value


@pytest.mark.parametrize("name", KNOWN_VAES)
def test_known_vaes_build_and_have_their_levels(name: str) -> None:
    config = load_vae_config(name)
    assert config is not None
    with torch.device("meta"):
        model = AutoencoderKL(**config)
    levels = encoder_levels(config)
    assert [level.downsample for level in levels] == [1, 2, 4, 8, 8]
    assert downsample(config) == 8
    for level in levels[:-1]:
        assert model.get_submodule(level.name).out_channels == level.channels
    assert model.get_submodule(levels[-1].name).resnets[-1].out_channels == levels[-1].channels
    assert load_vae_config("someone/unknown-vae") is None


def test_scaling_reads_every_kind_of_config() -> None:
    z = torch.randn(2, 16, 3, 3)
    flux = LatentScaling.from_config(KNOWN_VAES["black-forest-labs/FLUX.1-schnell/vae"])
    torch.testing.assert_close(flux.normalise(z), (z - 0.1159) * 0.3611)
    stable = LatentScaling.from_config(KNOWN_VAES["stabilityai/sd-vae-ft-mse"])
    assert stable == LatentScaling("config", (0.0,) * 4, (0.18215,) * 4)
    means, stds = [0.1 * i for i in range(16)], [1.0 + i for i in range(16)]
    config = {"latent_channels": 16, "scaling_factor": 0.5, "latents_mean": means}
    measured = LatentScaling.from_config(config | {"latents_std": stds})
    expected = (z[:, 3] - 0.3) * 0.5 / 4.0
    torch.testing.assert_close(measured.normalise(z)[:, 3], expected)
    torch.testing.assert_close(measured.denormalise(measured.normalise(z)), z)
    again = json.loads(json.dumps({"shift": measured.shift, "scale": measured.scale}))
    assert LatentScaling("config", **again) == measured
    with torch.inference_mode():
        LatentScaling("channel", (0.5,), (2.0,)).normalise(torch.ones(1, 1, 1, 1))
    leaf = torch.ones(1, 1, 1, 1, requires_grad=True)
    LatentScaling("channel", (0.5,), (2.0,)).normalise(leaf).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.item() == 2.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("fixed", (0.0,), (1.0,)), "scaling kind"),
        (("config", (0.0,), (1.0, 1.0)), "one shift and one scale"),
        (("config", (), ()), "one shift and one scale"),
        (("channel", (0.0,), (0.0,)), "above 0"),
    ],
)
def test_bad_scalings_are_refused(values: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LatentScaling(*values)
    with pytest.raises(ValueError, match="latents have 3 channels, their scaling has 1"):
        LatentScaling("config", (0.0,), (1.0,)).normalise(torch.zeros(1, 3, 2, 2))


@given(st.integers(1, 9))
def test_groups_split_levels_evenly_in_order(count: int) -> None:
    levels = [f"level{i}" for i in range(count)]
    groups = default_groups(levels)
    names = ["local_geometry", "spatial_topology", "coarse_layout"]
    assert list(groups) == names[: min(3, count)]
    assert [name for group in groups.values() for name in group] == levels
    sizes = [len(group) for group in groups.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


def test_no_levels_make_no_groups() -> None:
    with pytest.raises(ValueError, match="no levels to group"):
        default_groups([])


def test_embedded_vae_is_small_and_good() -> None:
    files = [path for path in DEMO_VAE_FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 4 * 1024**2
    vae = FrozenVAE.from_pretrained("demo")
    assert (vae.downsample, vae.latent_channels) == (4, vae.config["latent_channels"])
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
    block_out_channels=(8, 16), norm_num_groups=4, steps=3, batch_size=4, pool=8, unseen=4
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


def test_train_vae_spares_what_is_not_a_vae(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=str(tmp_path)):
            train_vae(tmp_path, "demo", SMALL, overwrite=overwrite, progress=False)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    with pytest.raises(ValueError, match="unknown picture source"):
        train_vae(tmp_path / "vae", "dmeo", SMALL, progress=False)
    assert not (tmp_path / "vae").exists()


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
