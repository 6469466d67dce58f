# SPDX-License-Identifier: Apache-2.0
"""What is known of a VAE without loading it: levels, groups, scaling."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys

import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given
from hypothesis import strategies as st

from ahpa_scale.models.vae_config import (
    ARCHITECTURE_DEFAULTS,
    KNOWN_VAES,
    SCALING_DEFAULTS,
    LatentScaling,
    default_groups,
    downsample,
    encoder_levels,
    load_vae_config,
)


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
    assert list(groups) == (levels if count == 1 else names[: min(3, count)])
    assert [name for group in groups.values() for name in group] == levels
    sizes = [len(group) for group in groups.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


def test_no_levels_make_no_groups() -> None:
    with pytest.raises(ValueError, match="no levels to group"):
        default_groups([])
