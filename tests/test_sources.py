# SPDX-License-Identifier: Apache-2.0
"""Pictures from folders, the demo and feature files: cropped, ordered, and refused by name."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from data_sets import COUNT, GRID, SIZE, save_features
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ahpa_scale.data.features import read_features
from ahpa_scale.data.sources import DemoSource, FolderSource, center_crop, open_image


@given(width=st.integers(1, 90), height=st.integers(1, 90), size=st.integers(1, 24))
@settings(max_examples=60)
def test_a_crop_is_square_and_keeps_a_plain_colour(width, height, size):
    cropped_HWC = center_crop(Image.new("RGB", (width, height), (10, 200, 30)), size)
    assert cropped_HWC.shape == (size, size, 3)
    assert np.abs(cropped_HWC.astype(int) - [10, 200, 30]).max() <= 1


def test_a_crop_takes_the_middle_and_halves_by_averaging():
    rng = np.random.default_rng(0)
    middle_HWC = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    wide_HWC = np.zeros((8, 20, 3), np.uint8)
    wide_HWC[:, 6:14] = middle_HWC
    np.testing.assert_array_equal(center_crop(Image.fromarray(wide_HWC), 8), middle_HWC)
    blocks_HWC = middle_HWC.reshape(4, 2, 4, 2, 3).mean(axis=(1, 3))
    halved_HWC = center_crop(Image.fromarray(middle_HWC), 4)
    # Pillow averages rows and columns one after the other and rounds each time.
    assert np.abs(halved_HWC - blocks_HWC).max() <= 1.0


def test_every_mode_becomes_rgb(tmp_path):
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(grey * 257).save(tmp_path / "deep.png")
    Image.fromarray(grey.astype(np.uint8)).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint8)).convert("P").save(tmp_path / "palette.png")
    for name in ("deep", "grey", "palette"):
        image = open_image(tmp_path / f"{name}.png")
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), np.stack([grey] * 3, axis=-1))


def test_what_is_transparent_is_laid_on_white(tmp_path):
    grey = np.arange(256).reshape(16, 16)
    alpha = grey.T
    layers = [Image.fromarray(part.astype(np.uint8)) for part in (grey, alpha)]
    Image.merge("LA", layers).save(tmp_path / "grey.png")
    Image.merge("LA", layers).convert("RGBA").save(tmp_path / "colour.png")
    wanted = grey * (alpha / 255) + 255 * (1 - alpha / 255)
    for name in ("grey", "colour"):
        image_HWC = np.asarray(open_image(tmp_path / f"{name}.png")).astype(float)
        assert np.abs(image_HWC - wanted[..., None]).max() <= 1, "Pillow rounds"
    palette = layers[0].convert("P")
    palette.save(tmp_path / "palette.png", transparency=bytes(range(256)))
    image_HWC = np.asarray(open_image(tmp_path / "palette.png")).astype(float)
    assert np.abs(image_HWC[..., 0] - (grey * (grey / 255) + 255 - grey)).max() <= 1


def test_a_folder_is_read_in_a_seeded_order_that_mixes_the_classes(pictures):
    first, again, other = (FolderSource(str(pictures), size=8, shuffle_seed=s) for s in (0, 0, 1))
    names = [[source.read(i).name for i in range(len(source))] for source in (first, again, other)]
    assert names[0] == names[1] != names[2]
    assert sorted(names[0]) == sorted(names[2])
    assert first.classes == ("ant", "bee", "cow")
    assert len(first) == COUNT
    for i in range(len(first)):
        picture = first.read(i)
        assert first.classes[picture.label] == picture.name.split("/")[0]
    assert {first.read(i).label for i in range(12)} == {0, 1, 2}
    limited = FolderSource(str(pictures), size=8, limit=5)
    assert [limited.read(i).name for i in range(len(limited))] == names[0][:5]


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_a_broken_picture_is_named(tmp_path, damage, suffix):
    path = tmp_path / "one" / f"broken.{suffix}"
    path.parent.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    content = {"cut": path.read_bytes()[:700], "text": b"hello", "empty": b""}[damage]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"cannot read the picture .*broken.{suffix}"):
        FolderSource(str(tmp_path), size=8).read(0)


def test_folders_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(ValueError, match="has no sub-folders"):
        FolderSource(str(tmp_path), size=8)
    (tmp_path / "ant").mkdir()
    with pytest.raises(ValueError, match=r"class folder .*ant has no pictures"):
        FolderSource(str(tmp_path), size=8)
    with pytest.raises(ValueError, match=r"did you mean .*ant\?"):
        FolderSource(str(tmp_path / "ants"), size=8)
    with pytest.raises(ValueError, match="did you mean 'demo'"):
        FolderSource("demmo", size=8)


def test_the_oracle_shares_sum_to_one_in_every_cell():
    for preset in ("easy", "medium", "hard"):
        source = DemoSource(preset, size=32, grid=8, num_samples=8, oracle=True)
        for i in range(len(source)):
            external_Cgg = source.read(i).external_Cgg
            assert external_Cgg.shape == (source.external_channels, 8, 8)
            # Three maps (object, shape, texture), each of which covers every pixel once.
            np.testing.assert_allclose(external_Cgg.sum(axis=0), 3.0, rtol=1e-6)


def test_a_demo_split_starts_where_the_other_ends():
    whole = DemoSource("hard", size=32, grid=8, num_samples=6, seed=3)
    tail = DemoSource("hard", size=32, grid=8, num_samples=2, seed=3, start=4)
    for i in range(2):
        np.testing.assert_array_equal(tail.read(i).image_HWC, whole.read(4 + i).image_HWC)
        assert tail.read(i).label == whole.read(4 + i).label


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (lambda path: path.unlink(), "no features at"),
        (lambda path: np.save(path, np.zeros((5, 3, 3), np.float32)), "a grid of 2 needs"),
        (lambda path: np.save(path, np.zeros((4, 7), np.float32)), "7 feature channels"),
        (lambda path: np.save(path, np.zeros((5, 2, 2), np.int64)), "floating-point"),
        (lambda path: np.save(path, np.array([{}]), allow_pickle=True), "cannot read the features"),
        (lambda path: path.write_bytes(b"PK"), "cannot read the features"),
    ],
)
def test_features_that_do_not_fit_are_named(pictures, tmp_path, save, message):
    save_features(pictures, tmp_path)
    features = {"features": str(tmp_path), "grid": GRID}
    name = FolderSource(str(pictures), size=SIZE, **features).read(3).name
    save((tmp_path / name).with_suffix(".npy"))
    source = FolderSource(str(pictures), size=SIZE, **features)
    with pytest.raises(ValueError, match=message):
        source.read(3)


def test_feature_files_are_parsed_one_at_a_time(tmp_path, monkeypatch):
    path = tmp_path / "one.npy"
    np.save(path, np.ones((5, 2, 2), np.float32))
    parsing, seen = threading.Semaphore(1), []

    def load(content, load=np.load, **options):
        seen.append(parsing.acquire(blocking=False))
        time.sleep(0.002)  # long enough for another thread to come
        parsing.release()
        return load(content, **options)

    monkeypatch.setattr(np, "load", load)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: read_features(path, 2).sum(), range(40)))
    assert found == [20.0] * 40
    assert seen == [True] * 40
