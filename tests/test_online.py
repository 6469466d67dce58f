# SPDX-License-Identifier: Apache-2.0
"""Cached priors and online encoding are the same training, up to the cache's rounding."""

from __future__ import annotations

import pytest
import torch

from ahpa_scale.algorithms.ahpa import AHPA
from ahpa_scale.data.card import DatasetCard, read_card
from ahpa_scale.data.codec_file import read_codec
from ahpa_scale.data.prepare import prepare
from ahpa_scale.data.stream import build_loader
from ahpa_scale.method import HeadSettings, RouterSettings
from ahpa_scale.models.dit import build_dit
from ahpa_scale.models.generator import DiffusionGenerator
from ahpa_scale.models.vae import FrozenVAE


@pytest.fixture(scope="module")
def data_sets(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("online")
    common = {"size": 32, "num_samples": 64, "vae_path": "demo", "progress": False}
    for codec in ("residual", "pooled"):
        for kind in ("latents", "images"):
            prepare("demo", str(folder / codec / kind), kind=kind, codec=codec, **common)
    bfloat16 = {"codec": "pooled", "prior_dtype": "bfloat16", **common}
    prepare("demo", str(folder / "pooled" / "bfloat16"), kind="latents", **bfloat16)
    return {f"{path.parent.name} {path.name}": str(path) for path in folder.glob("*/*")}


def aligned_generator(
    url: str, card: DatasetCard, vae: FrozenVAE | None, cpu_bf16: bool = False
) -> DiffusionGenerator:
    torch.manual_seed(0)
    codec = read_codec(url, card)
    channels, side, _ = card.latent_shape
    dit = build_dit("tiny/2", input_size=side, in_channels=channels, num_classes=8, depth=3)
    generator = DiffusionGenerator(
        dit, scaling=card.scaling, vae=vae, codec=codec, cpu_bf16=cpu_bf16
    )
    levels = card.prior_channels
    # One loss per level, so that each of them is compared and none hides in a mean.
    groups = {name.replace(".", "_"): [name] for name in [*levels, "latent"]}
    plug_in = AHPA(
        levels, groups=groups, head=HeadSettings(width=64), router=RouterSettings(floor=0.0)
    )
    generator.attach("alignment", plug_in.build(dit), taps=1)
    return generator


def losses(
    url: str, vae: FrozenVAE | None, cpu_bf16: bool
) -> tuple[dict[str, float], torch.Tensor]:
    card = read_card(url)
    generator = aligned_generator(url, card, vae, cpu_bf16)
    levels = None if card.kind == "latents" else ()
    batch = next(iter(build_loader(url, batch_size=32, shuffle=False, levels=levels)))
    loss = generator.loss(generator(batch), batch)
    generator.attachments["alignment"].statistics.commit()
    return {name: float(value) for name, value in loss.items()}, generator.attachments[
        "alignment"
    ].statistics.mean_GT


@pytest.mark.parametrize("cpu_bf16", [False, True], ids=["float32", "bfloat16 autocast"])
@pytest.mark.parametrize("cache", ["residual latents", "pooled latents", "pooled bfloat16"])
def test_cached_and_online_alignment_agree(cache: str, cpu_bf16: bool, data_sets: dict[str, str]):
    vae = FrozenVAE.from_pretrained("demo")
    cached, cached_GT = losses(data_sets[cache], None, cpu_bf16)
    online, online_GT = losses(data_sets[f"{cache.split()[0]} images"], vae, cpu_bf16)
    assert abs(cached["alignment"]) > 1e-3
    assert cached["alignment"] == pytest.approx(online["alignment"], rel=1e-3)
    assert cached["flow"] == pytest.approx(online["flow"], rel=1e-3)
    torch.testing.assert_close(cached_GT, online_GT, rtol=2e-2, atol=1e-3)


def test_online_encoding_never_becomes_part_of_the_model(data_sets: dict[str, str]):
    vae = FrozenVAE.from_pretrained("demo")
    url = data_sets["residual images"]
    card = read_card(url)
    plain, online = aligned_generator(url, card, None), aligned_generator(url, card, vae)
    assert list(online.state_dict()) == list(plain.state_dict())
    assert len(list(online.parameters())) == len(list(plain.parameters()))
