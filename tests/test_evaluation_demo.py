# SPDX-License-Identifier: Apache-2.0
"""The demo's exact scores: low on real pictures, and moved the right way by each kind of damage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ahpa_scale.data.demo import DemoSpec
from experiments.judges import DemoReference, build_demo_reference, load_demo_reference
from experiments.judges.distributions import quantiles, texture_quantiles, wasserstein
from experiments.judges.factor_judge import render_many

SPEC = DemoSpec(size=32, num_classes=6, objects=(2, 2), num_shapes=3, relations="label")
REAL = render_many(SPEC, 1, 300)
IMAGES, LABELS = REAL.images_N3SS, REAL.labels_N


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoReference, Path]:
    folder = tmp_path_factory.mktemp("references") / "demo"
    return build_demo_reference(SPEC, folder, pictures=1000, steps=150), folder


def blurred(images: torch.Tensor) -> torch.Tensor:
    padded = F.pad(images.float(), (2, 2, 2, 2), mode="replicate")
    return F.avg_pool2d(padded, 5, 1).round().to(torch.uint8)


def swapped(images: torch.Tensor) -> torch.Tensor:
    """Patches of 8 pixels change places within each picture: fine structure stays."""
    patches = images.unfold(2, 8, 8).unfold(3, 8, 8).flatten(2, 3)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    rows = patches[:, :, order].unflatten(2, (4, 4))
    return rows.permute(0, 1, 2, 4, 3, 5).reshape(images.shape)


def noisy(images: torch.Tensor) -> torch.Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + 12 * noise).round().clamp(0, 255).to(torch.uint8)


def test_conditional_scores_see_real_pictures_as_nearly_perfect(built):
    score = built[0].score(IMAGES, LABELS)
    assert score["shape_accuracy"] > 0.85, score
    assert score["layout_error"] < 0.1, score
    assert score["texture_distance"] < 0.2, score


def test_conditional_scores_fall_where_label_and_picture_part(built):
    reference, _ = built
    real = reference.score(IMAGES, LABELS)
    other = reference.score(IMAGES, (LABELS + 1) % 6)
    assert other["shape_accuracy"] < 0.5 < real["shape_accuracy"]
    assert other["layout_error"] > 2 * real["layout_error"]
    assert other["texture_distance"] == real["texture_distance"]


@pytest.mark.parametrize("conditional", [True, False])
def test_each_damage_moves_the_score_of_its_scale(built, conditional):
    reference, _ = built
    labels = LABELS if conditional else None
    real = reference.score(IMAGES, labels)
    patchwork = reference.score(swapped(IMAGES), labels)
    assert patchwork["shape_accuracy"] < real["shape_accuracy"] - 0.2, (real, patchwork)
    assert patchwork["layout_error"] > 3 * real["layout_error"], (real, patchwork)
    for damage in (blurred, noisy):
        score = reference.score(damage(IMAGES), labels)
        assert score["texture_distance"] > 4 * real["texture_distance"], (damage, score)
        # Fine damage leaves the coarse structure nearly alone.
        assert score["shape_accuracy"] > patchwork["shape_accuracy"] + 0.15, (damage, score)
        assert score["layout_error"] < 0.5 * patchwork["layout_error"], (damage, score)


def test_unconditional_layout_sees_a_missing_mode(built):
    """Only the pictures whose first object lies on the left."""
    reference, _ = built
    left = REAL.objects.place_NO2[:, 0, 0] < 0.4
    real, partial = reference.score(IMAGES), reference.score(IMAGES[left])
    assert real["layout_error"] < 0.03
    assert real["shape_accuracy"] > 0.7
    assert partial["layout_error"] > 1.5 * real["layout_error"]
    assert partial["shape_accuracy"] == pytest.approx(real["shape_accuracy"], abs=0.1)


def test_empty_pictures_score_worst(built):
    reference, _ = built
    empty = torch.full_like(IMAGES, 70)
    assert reference.score(empty)["shape_accuracy"] == 0
    assert reference.score(empty)["layout_error"] > 0.2
    score = reference.score(empty, LABELS)
    assert (score["shape_accuracy"], score["layout_error"]) == (0, 0.5)


def test_the_judge_finds_the_known_objects(built):
    found, cover = built[0].judge.find_all(IMAGES)
    true = REAL.objects
    apart = (found.place_NO2[:, :, None] - true.place_NO2[:, None]).norm(dim=-1)
    both = found.there_NO[:, :, None] & true.there_NO[:, None]
    nearest = torch.where(both, apart, 9.0).min(dim=1)
    hit = true.there_NO & (nearest.values < 0.08)
    assert hit.sum() / true.there_NO.sum() > 0.9
    assert found.there_NO.sum() / true.there_NO.sum() == pytest.approx(1.0, abs=0.1)
    size = found.size_NO.gather(1, nearest.indices)
    assert (size - true.size_NO)[hit].abs().mean() < 0.03
    hue = (found.hue_NO.gather(1, nearest.indices) - true.hue_NO)[hit].abs()
    assert torch.minimum(hue, 1 - hue).median() < 0.05
    assert (cover == REAL.shape_Nhw).float().mean() > 0.9


def test_a_loaded_reference_gives_the_same_scores(built):
    reference, folder = built
    loaded = load_demo_reference(folder)
    assert loaded.spec == SPEC
    assert loaded.score(IMAGES, LABELS) == reference.score(IMAGES, LABELS)
    assert loaded.score(IMAGES) == reference.score(IMAGES)


def test_wrong_input_is_one_clear_line(built, tmp_path):
    reference, folder = built
    for wrong in (IMAGES.float(), IMAGES[..., :16], IMAGES[:0]):
        with pytest.raises(ValueError, match=r"uint8 pictures \[N, 3, 32, 32\]"):
            reference.score(wrong)
    with pytest.raises(ValueError, match="need 300 labels"):
        reference.score(IMAGES, LABELS[:5])
    with pytest.raises(ValueError, match="within 0 to 5"):
        reference.score(IMAGES, LABELS + 1)
    with pytest.raises(FileExistsError):
        build_demo_reference(SPEC, folder, pictures=4, steps=1)
    with pytest.raises(ValueError, match="4 pictures"):
        build_demo_reference(SPEC, tmp_path / "new", pictures=3)
    with pytest.raises(ValueError, match="no demo reference"):
        load_demo_reference(tmp_path)


@given(values=st.lists(st.floats(-10, 10), min_size=1, max_size=600), shift=st.floats(-5, 5))
@settings(max_examples=30)
def test_wasserstein_distance_of_a_shift_is_the_shift(values, shift):
    x = torch.tensor(values, dtype=torch.float64)
    shuffled = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    assert wasserstein(quantiles(x), quantiles(shuffled + shift)) == pytest.approx(
        abs(shift), abs=1e-9
    )


def test_quantiles_are_those_of_the_distribution():
    x = torch.arange(100_000, dtype=torch.float64) / 100_000
    expected = (torch.arange(256) + 0.5) / 256
    assert torch.allclose(quantiles(x), expected.double(), atol=1e-4)


def test_texture_measures_count_energy():
    """Half the contrast is a quarter of the energy, in every channel and band."""
    generator = torch.Generator().manual_seed(0)
    deviation = torch.randint(-100, 101, (8, 3, 32, 32), generator=generator) // 2 * 2
    full = texture_quantiles((128 + deviation).to(torch.uint8))
    half = texture_quantiles((128 + deviation // 2).to(torch.uint8))
    assert torch.allclose(full - half, torch.full_like(full, 4.0).log(), atol=0.05)
    flat = texture_quantiles(torch.full((2, 3, 32, 32), 90, dtype=torch.uint8))
    assert torch.allclose(flat, flat[0, 0].expand_as(flat))


def test_a_coarse_ripple_and_a_fine_one_differ_in_their_bands():
    x = torch.arange(32)
    tables = []
    for period in (8, 2.7):
        wave = (128 + 60 * torch.sin(2 * torch.pi * x / period)).round().to(torch.uint8)
        tables.append(texture_quantiles(wave.expand(2, 3, 32, 32)).mean(dim=1))
    coarse, fine = tables
    assert coarse[3:].argmax() == 0
    assert fine[3:].argmax() == 2
