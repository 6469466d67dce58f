# SPDX-License-Identifier: Apache-2.0
"""Pictures -> shards: what is stored is what the encoder said, and the card tells what it is."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from data_sets import COUNT, GRID, LEVELS, SIZE, batches, everything, save_features
from hypothesis import given, settings
from hypothesis import strategies as st
from s3_server import BUCKET, S3Server, s3_server

from ahpa_scale.data.card import (
    CARD_NAME,
    PRIOR_STATISTICS,
    DatasetCard,
    read_card,
    read_prior_statistics,
)
from ahpa_scale.data.codec_file import CODEC_NAME
from ahpa_scale.data.prepare import prepare
from ahpa_scale.data.sources import FolderSource
from ahpa_scale.data.statistics import ChannelStatistics, TokenMoments
from ahpa_scale.data.stream import build_loader
from ahpa_scale.method.priors import patchify, pool_to_grid
from ahpa_scale.models.vae import FrozenVAE


def test_stored_moments_and_levels_are_those_of_a_direct_encode(
    prepared, pictures, vae_path, pooled
):
    card = read_card(prepared)
    assert (card.kind, card.num_samples, card.grid) == ("latents", COUNT, GRID)
    assert card.latent_shape == (4, SIZE // 4, SIZE // 4)
    assert card.level_names == LEVELS
    assert card.classes == ("ant", "bee", "cow")
    vae = FrozenVAE.from_pretrained(vae_path)
    assert card.vae.identity == vae.identity
    source = FolderSource(str(pictures), size=SIZE)
    found = batches(prepared)
    assert len(list(Path(prepared).glob("*.mds"))) > 1
    assert everything(found, "index").tolist() == list(range(COUNT))
    images = np.stack([source.read(i).image_HWC for i in range(COUNT)])
    labels = [source.read(i).label for i in range(COUNT)]
    assert everything(found, "label").tolist() == labels
    direct = vae.encode(torch.from_numpy(images).permute(0, 3, 1, 2), levels=LEVELS, grid=GRID)
    moments = torch.cat([direct.mean_BCHW, direct.std_BCHW], dim=1)
    close(everything(found, "moments"), moments)
    for level in LEVELS:
        close(everything(batches(pooled), f"prior.{level}"), direct.priors[level])


def close(stored: torch.Tensor, direct: torch.Tensor) -> None:
    assert stored.dtype == torch.float16
    # Half a unit in the last place of float16, and the float32 noise of another batch size.
    torch.testing.assert_close(stored.float(), direct, rtol=2**-11 + 1e-5, atol=1e-5)


def test_channel_scaling_standardises_posterior_samples(prepared):
    scaling = read_card(prepared).scaling
    assert scaling.kind == "channel"
    mean, std = everything(batches(prepared), "moments").float().chunk(2, dim=1)
    samples = torch.cat([mean + std * torch.randn_like(std) for _ in range(50)])
    z = scaling.normalise(samples)
    torch.testing.assert_close(z.mean(dim=(0, 2, 3)), torch.zeros(4), atol=0.02, rtol=0)
    torch.testing.assert_close(z.std(dim=(0, 2, 3)), torch.ones(4), atol=0.02, rtol=0)


@given(st.lists(st.integers(1, 7), min_size=1, max_size=6), st.floats(-1e4, 1e4))
@settings(max_examples=40)
def test_statistics_do_not_depend_on_the_batches(sizes, offset):
    generator = torch.Generator().manual_seed(sum(sizes))
    mean = torch.randn(sum(sizes), 3, 2, 2, generator=generator).double() + offset
    std = torch.rand(sum(sizes), 3, 2, 2, generator=generator).double() + 0.1
    pieces = ChannelStatistics()
    for mean_part, std_part in zip(mean.split(sizes), std.split(sizes), strict=True):
        pieces.update(mean_part, std_part)
    found = pieces.scaling()
    variance = mean.var(dim=(0, 2, 3), correction=0) + std.square().mean(dim=(0, 2, 3))
    torch.testing.assert_close(torch.tensor(found.shift).double(), mean.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(torch.tensor(found.scale).double(), variance.rsqrt())


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.floats(-1e4, 1e4))
@settings(max_examples=40)
def test_token_moments_do_not_depend_on_the_batches(sizes, offset):
    generator = torch.Generator().manual_seed(sum(sizes))
    mix = torch.randn(3, 3, generator=generator).double()
    tokens = torch.randn(sum(sizes), 3, generator=generator).double() @ mix + offset
    moments = TokenMoments()
    for part in tokens.split(sizes):
        moments.update(part)
    expected = torch.atleast_2d(torch.cov(tokens.T, correction=0))
    torch.testing.assert_close(moments.mean_C, tokens.mean(dim=0))
    torch.testing.assert_close(moments.covariance_CC, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scaling", ["config", "channel"])
def test_prior_statistics_are_those_of_the_stored_tokens(scaling, pictures, vae_path, tmp_path):
    save_features(pictures, tmp_path / "features")
    out = str(tmp_path / "set")
    options = {"features": str(tmp_path / "features"), "scaling": scaling, "batch_size": 10}
    card = prepare(str(pictures), out, vae_path=vae_path, size=SIZE, progress=False, **options)
    statistics = read_prior_statistics(out)
    found = batches(out)
    mean, _ = everything(found, "moments").float().chunk(2, dim=1)
    # The latent as the alignment reads it: scaled, in the patches of the token grid.
    priors = {"latent": patchify(card.scaling.normalise(mean), GRID)}
    for level in (*LEVELS, "external"):
        priors[level] = pool_to_grid(everything(found, f"prior.{level}"), GRID)
    assert set(statistics) == {f"{k}.{what}" for k in priors for what in ("mean", "covariance")}
    for level, tokens_BNC in priors.items():
        tokens_NC = tokens_BNC.flatten(0, 1).double()
        covariance = torch.cov(tokens_NC.T, correction=0).float()
        scale = float(covariance.diagonal().max())
        close_to = {"rtol": 2e-3, "atol": 2e-3 * scale}
        torch.testing.assert_close(statistics[f"{level}.covariance"], covariance, **close_to)
        torch.testing.assert_close(
            statistics[f"{level}.mean"], tokens_NC.mean(dim=0).float(), rtol=2e-3, atol=2e-3
        )


def test_a_set_without_prior_statistics_has_none_and_damaged_ones_are_named(
    pictures, vae_path, tmp_path
):
    out = tmp_path / "set"
    options = {"vae_path": vae_path, "size": SIZE, "limit": 8, "progress": False}
    prepare(str(pictures), str(out), kind="images", **options)
    assert read_prior_statistics(out) == {}
    prepare(str(pictures), str(out), overwrite=True, **options)
    path = out / PRIOR_STATISTICS
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"prior_statistics.safetensors cannot be read"):
        read_prior_statistics(out)


def test_pictures_are_stored_losslessly_for_online_encoding(pictures, vae_path, tmp_path):
    out = str(tmp_path / "set")
    card = prepare(str(pictures), out, vae_path=vae_path, size=SIZE, kind="images", progress=False)
    assert card.scaling.kind == "config"
    assert card.level_names == LEVELS
    found = batches(out)
    assert set(found[0]) == {"index", "epoch", "label", "image"}
    source = FolderSource(str(pictures), size=SIZE)
    images = np.stack([source.read(i).image_HWC for i in range(COUNT)])
    stored = everything(found, "image")
    assert stored.dtype == torch.uint8
    np.testing.assert_array_equal(stored.permute(0, 2, 3, 1).numpy(), images)


@pytest.mark.parametrize("flat", [False, True])
def test_features_of_another_encoder_come_along(pictures, vae_path, tmp_path, flat):
    save_features(pictures, tmp_path / "features", flat=flat)
    out = str(tmp_path / "set")
    options = {"features": str(tmp_path / "features"), "levels": LEVELS[:1], "limit": 16}
    card = prepare(str(pictures), out, vae_path=vae_path, size=SIZE, progress=False, **options)
    assert card.external_channels == 5
    stored = everything(batches(out, levels=("external",)), "prior.external")
    source = FolderSource(str(pictures), size=SIZE)
    for i in range(16):
        path = (tmp_path / "features" / source.read(i).name).with_suffix(".npy")
        expected = np.load(path)
        expected = expected.T.reshape(5, GRID, GRID) if flat else expected
        np.testing.assert_array_equal(stored[i].numpy(), expected.astype(np.float16))


def test_what_float16_cannot_hold_is_named_and_bfloat16_holds_it(pictures, vae_path, tmp_path):
    save_features(pictures, tmp_path / "features", largest=1e6)
    out = str(tmp_path / "set")
    options = {"vae_path": vae_path, "size": SIZE, "limit": 8, "progress": False}
    options["features"] = str(tmp_path / "features")
    with pytest.raises(ValueError, match=r"level external reaches .*use prior_dtype bfloat16"):
        prepare(str(pictures), out, **options)
    assert os.listdir(tmp_path) == ["features"]
    prepare(str(pictures), out, prior_dtype="bfloat16", **options)
    batch = batches(out)[0]
    source = FolderSource(str(pictures), size=SIZE)
    path = (tmp_path / "features" / source.read(0).name).with_suffix(".npy")
    expected = torch.from_numpy(np.load(path)).to(torch.bfloat16)
    assert batch["prior.external"].dtype == torch.bfloat16
    assert torch.equal(batch["prior.external"][0], expected)
    assert batch[f"prior.{LEVELS[-1]}"].dtype == torch.bfloat16
    assert batch["moments"].dtype == torch.float16


def test_a_card_comes_back_and_a_strange_one_is_refused(prepared, tmp_path):
    card = read_card(prepared)
    assert DatasetCard.from_json(card.to_json()) == card
    content = json.loads(card.to_json())
    assert content["format"] == 1
    strange = [
        ({**content, "format": 2}, "data format 2, and this version reads 1"),
        ({**content, "kind": "videos"}, "is not a card"),
        ({**content, "surprise": 1}, "surprise"),
        ({key: content[key] for key in content if key != "grid"}, "grid"),
        ([1], "is not a card"),
    ]
    for changed, message in strange:
        with pytest.raises(ValueError, match=message) as caught:
            DatasetCard.from_json(json.dumps(changed), "here.json")
        assert str(caught.value).startswith("here.json")
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="is not JSON"):
        DatasetCard.from_json("{", "here.json")


def test_without_a_card_there_is_no_data_set(prepared, tmp_path):
    with pytest.raises(ValueError, match=r"no data set at .*: run `ahpa-scale prepare"):
        build_loader(str(tmp_path / "nothing"), batch_size=4)
    with pytest.raises(ValueError, match=f"there is one at {prepared}"):
        read_card(os.path.dirname(prepared))


def test_a_data_set_is_replaced_only_when_asked(vae_path, tmp_path):
    options = {"vae_path": vae_path, "size": 16, "num_samples": 8, "progress": False}
    out = str(tmp_path / "set")
    old = prepare("demo", out, **options)
    with pytest.raises(FileExistsError, match="holds a data set already"):
        prepare("demo", out, **options)
    assert prepare("demo", out, overwrite=True, **options).fingerprint == old.fingerprint
    new = prepare("demo", out, overwrite=True, **{**options, "seed": 1})
    assert new.fingerprint != old.fingerprint
    assert read_card(out) == new
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="holds something else"):
        prepare("demo", str(tmp_path / "mine"), overwrite=True, **options)
    assert sorted(os.listdir(tmp_path)) == ["mine", "set"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


def test_a_data_set_in_an_object_store(
    server: S3Server, monkeypatch, pictures, prepared, vae_path, tmp_path
):
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    url = f"s3://{BUCKET}/deep/set"
    options = {"vae_path": vae_path, "size": SIZE, "batch_size": 10, "progress": False}
    card = prepare(str(pictures), url, shard_size="20kb", scaling="channel", **options)
    # The same bytes as the local set, since nothing but the place differs.
    assert card == dataclasses.replace(read_card(prepared), fingerprint=card.fingerprint)
    assert card.fingerprint == read_card(prepared).fingerprint
    assert read_card(url) == card
    cache = str(tmp_path / "cache")
    with pytest.raises(ValueError, match="set `local`"):
        build_loader(url, batch_size=4)
    found, local = batches(url, local=cache, num_workers=1), batches(prepared)
    for mine, theirs in zip(found, local, strict=True):
        for key in theirs:
            assert torch.equal(mine[key], theirs[key])
    before = server.keys("deep/set")
    with pytest.raises(FileExistsError, match="holds a data set already"):
        prepare(str(pictures), url, **options)
    # A smaller set in its place leaves no orphans of the larger one.
    small = prepare(str(pictures), url, limit=8, overwrite=True, **options)
    after = server.keys("deep/set")
    assert len(after) < len(before)
    assert [name for name in after if not name.endswith(".mds")] == [
        "deep/set/dataset.json",
        "deep/set/index.json",
        f"deep/set/{CODEC_NAME}",
        f"deep/set/{PRIOR_STATISTICS}",
    ]
    assert set(read_prior_statistics(url)) == set(read_prior_statistics(prepared))
    assert len(everything(batches(url, local=cache, batch_size=4), "index")) == 8
    assert sorted(os.listdir(cache)) == sorted([card.fingerprint, small.fingerprint])
    # Pictures have no statistics, and those of the set before must not pass for theirs.
    prepare(str(pictures), url, limit=8, overwrite=True, kind="images", **options)
    assert read_prior_statistics(url) == {}
    # Shards without their card are what a killed run leaves: not a data set.
    server.client().delete_object(Bucket=BUCKET, Key=f"deep/set/{CARD_NAME}")
    with pytest.raises(ValueError, match="no data set at s3://"):
        build_loader(url, local=cache, batch_size=4)


def test_a_bucket_that_is_not_there_is_one_line(server, monkeypatch, pictures, vae_path):
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OSError, match="s3://no-such-bucket/set") as caught:
        prepare(str(pictures), "s3://no-such-bucket/set", vae_path=vae_path, size=SIZE)
    assert "\n" not in str(caught.value)
