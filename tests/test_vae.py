# SPDX-License-Identifier: Apache-2.0
"""The frozen VAE: levels against a hand-run encoder, moments, identity, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from ahpa_scale.models.vae import FrozenVAE
from ahpa_scale.models.vae_config import (
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
    with pytest.raises(ValueError, match="s3://bucket/vae is not on this machine"):
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
