# SPDX-License-Identifier: Apache-2.0
"""Classifiers and the judge's reference: training, files, and scores that move the right way."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from ahpa_scale.data.demo import DemoSpec, render
from experiments.judges import (
    Classifier,
    Reference,
    build_reference,
    load_reference,
    to_pictures,
    train_classifier,
)
from experiments.judges.training import ShuffledBatches, largest_shift

# Two hues per shape: neither hue nor shape alone names the class.
SPEC = DemoSpec(size=32, num_classes=8, num_shapes=4)
STEPS = 120


def drawn(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    pictures = [render(SPEC, seed, index) for index in range(count)]
    return np.stack([p.image for p in pictures]), np.array([p.label for p in pictures])


TRAIN, TEST = drawn(0, 400), drawn(1, 200)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Reference, Path]:
    folder = tmp_path_factory.mktemp("references") / "demo"
    return build_reference(*TRAIN, *TEST, folder, steps=STEPS), folder


def test_the_judge_learns_and_real_test_pictures_are_the_floor(built):
    reference, _ = built
    assert reference.num_classes == 8
    assert reference.judge_accuracy > 0.6
    images, labels = to_pictures(TEST[0]), torch.from_numpy(TEST[1])
    floor = reference.score(images, labels)
    assert floor["accuracy"] == reference.judge_accuracy
    blurred = F.avg_pool2d(images.float(), 5, 1, 2).round().to(torch.uint8)
    grey = images.float().mean(1, keepdim=True).expand_as(images).round().to(torch.uint8)
    one_class = images[labels == 0]
    for worse in (blurred, grey, one_class[torch.arange(200) % len(one_class)]):
        score = reference.score(worse)
        assert set(score) == {"fd", "kid"}
        assert score["fd"] > 1.5 * floor["fd"]
        assert score["kid"] > 2 * abs(floor["kid"])
    assert reference.score(images, (labels + 1) % 8)["accuracy"] < 0.3


def test_a_loaded_reference_gives_the_same_numbers(built):
    reference, folder = built
    images, labels = to_pictures(TEST[0]), torch.from_numpy(TEST[1])
    loaded = load_reference(folder)
    assert loaded.score(images, labels) == reference.score(images, labels)
    assert (loaded.judge_accuracy, loaded.size) == (reference.judge_accuracy, 32)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["demo"]


def test_a_reference_refuses_what_it_cannot_judge(built):
    reference, folder = built
    images = to_pictures(TEST[0][:4])
    with pytest.raises(ValueError, match=r"uint8 pictures \[N, 3, 32, 32\]"):
        reference.score(images.float())
    with pytest.raises(ValueError, match=r"uint8 pictures \[N, 3, 32, 32\]"):
        reference.score(images[..., :16, :16])
    with pytest.raises(ValueError, match="4 labels"):
        reference.score(images, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(FileExistsError):
        build_reference(*TRAIN, *TEST, folder, steps=1)


def test_a_reference_wants_fitting_parts(tmp_path):
    with pytest.raises(ValueError, match="but test pictures"):
        build_reference(*TRAIN, TEST[0][:, :16, :16], TEST[1], tmp_path / "a")
    with pytest.raises(ValueError, match="label 7 is outside 0 to 3"):
        build_reference(*TRAIN, *TEST, tmp_path / "a", num_classes=4)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="no reference"):
        load_reference(tmp_path)


@pytest.mark.parametrize("arch", ["judge", "teacher"])
def test_a_classifier_trains_deterministically_and_survives_its_files(arch, tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    models = [
        train_classifier(*TRAIN, 8, arch=arch, steps=4, batch_size=16, seed=seed)
        for seed in (0, 0, 1)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    images = to_pictures(TEST[0][:8])
    logits = [model.logits(images) for model in models]
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])
    models[0].save(tmp_path / "model")
    loaded = Classifier.load(tmp_path / "model")
    assert torch.equal(loaded.logits(images), logits[0])
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_pictures_are_shifted_by_two_pixels_at_most_and_only_where_they_repeat_often():
    side = torch.arange(32, dtype=torch.uint8)
    ramp = (side[:, None] * 8 + 0 * side).expand(50, 3, 32, 32)
    seen = set()
    for shifts in (largest_shift(50, 100, 10), largest_shift(5000, 100, 10)):
        batches = ShuffledBatches(ramp, 50, 0, shifts)
        images, index = batches.next()
        assert sorted(index.tolist()) == list(range(50))
        moves = (images[:, 0, 10:20, 5].float() - ramp[:, 0, 10:20, 5]).flatten().div(8)
        seen.add(tuple(sorted(set(moves.tolist()))))
    assert seen == {(-2.0, -1.0, 0.0, 1.0, 2.0), (0.0,)}


@pytest.mark.parametrize("arch", ["judge", "teacher"])
def test_features_and_maps_are_views_of_the_last_stage(arch):
    model = Classifier(arch, 4).eval()
    images = to_pictures(TEST[0][:5])
    features, maps = model.features(images), model.maps(images, 4)
    assert features.shape == (5, model.feature_dim)
    assert maps.shape == (5, model.map_channels, 4, 4)
    assert maps.dtype == features.dtype == torch.float32
    assert torch.allclose(maps.mean(dim=(2, 3)), features, atol=1e-5)
    assert torch.allclose(model.head(features), model.logits(images), atol=1e-5)
    scaled = images.float() / 127.5 - 1
    assert torch.equal(model.features(scaled), features)
    with pytest.raises(ValueError, match="grid 16 does not fit"):
        model.maps(images, 16)


def test_the_teacher_is_not_the_judge():
    judge, teacher = Classifier("judge", 4), Classifier("teacher", 4)
    assert set(judge.state_dict()) != set(teacher.state_dict())
    with pytest.raises(ValueError, match="did you mean 'teacher'"):
        Classifier("teecher", 4)


def test_the_teachers_maps_keep_their_place():
    """A change in one corner of the picture stays in that corner's tokens."""
    model = Classifier("teacher", 4).eval()
    images = to_pictures(TEST[0][:1])
    changed = images.clone()
    changed[..., :4, :4] = 255 - changed[..., :4, :4]
    moved = (model.maps(changed, 8) - model.maps(images, 8)).abs().sum(1)[0]
    assert moved[0, 0] > 0
    assert moved[5:].max() == moved[:, 5:].max() == 0


@pytest.mark.parametrize(
    ("images", "labels", "options", "message"),
    [
        (TRAIN[0].astype(np.float32), TRAIN[1], {}, "uint8 array"),
        (TRAIN[0].transpose(0, 3, 1, 2), TRAIN[1], {}, "uint8 array"),
        (TRAIN[0], TRAIN[1][:-1], {}, "400 whole labels"),
        (TRAIN[0], TRAIN[1].astype(np.float32), {}, "400 whole labels"),
        (TRAIN[0], TRAIN[1] - 1, {}, "label -1 is outside 0 to 7"),
        (TRAIN[0][:0], TRAIN[1][:0], {}, "no pictures"),
        (TRAIN[0], TRAIN[1], {"steps": 0}, "steps"),
    ],
)
def test_bad_training_data_is_one_clear_line(images, labels, options, message):
    with pytest.raises(ValueError, match=message):
        train_classifier(images, labels, 8, **options)


def test_damaged_files_are_named(tmp_path):
    Classifier("judge", 4).save(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps({"arch": "judge"}))
    with pytest.raises(ValueError, match="no classifier can be read"):
        Classifier.load(tmp_path / "model")
    save_file({"x": torch.zeros(1)}, tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "config.json").write_text('{"arch": "judge", "num_classes": 4}')
    with pytest.raises(ValueError, match="no classifier can be read"):
        Classifier.load(tmp_path / "model")
