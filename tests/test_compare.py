# SPDX-License-Identifier: Apache-2.0
"""`ahpa-scale compare`: sets of every kind, through the command."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from streaming import MDSWriter

from ahpa_scale.cli import main
from ahpa_scale.data.prepare import prepare

SIDE = 32


def drawn(count: int, seed: int, side: int = SIDE) -> np.ndarray:
    small_NSS3 = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    large = [Image.fromarray(each).resize((side, side)) for each in small_NSS3]
    return np.stack([np.asarray(each) for each in large])


def save_folder(folder: Path, images_NSS3: np.ndarray) -> Path:
    folder.mkdir()
    for number, image in enumerate(images_NSS3):
        Image.fromarray(image).save(folder / f"{number:03d}.png")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """The same pictures as a folder, an .npz and a data set, and others to compare with."""
    place = tmp_path_factory.mktemp("compare")
    images_NSS3 = drawn(12, 0)
    save_folder(place / "folder", images_NSS3)
    np.savez_compressed(place / "pictures.npz", images_NSS3)
    save_folder(place / "other", drawn(14, 1))
    classes = place / "classes"
    classes.mkdir()
    save_folder(classes / "all", images_NSS3)
    options = {"size": SIDE, "kind": "images", "vae_path": "demo", "progress": False}
    prepare(str(classes), str(place / "set"), class_depth=0, **options)
    # As `sample --format mds` writes them.
    with MDSWriter(out=str(place / "shards"), columns={"image": "png", "label": "int"}) as shards:
        for image in images_NSS3:
            shards.write({"image": Image.fromarray(image), "label": 3})
    with tarfile.open(place / "pictures.tar", "w") as tar:
        for path in sorted((place / "folder").iterdir()):
            tar.add(path, path.name)
    return place


@pytest.fixture
def compare(tmp_path, capfd) -> Callable[..., tuple[int, str, dict]]:
    def call(*words: object, writes: bool = True) -> tuple[int, str, dict]:
        out = tmp_path / "out.json"
        line = ["compare", *words, "--no-progress", *(["--out", out] if writes else [])]
        if "--features" not in words:
            line += ["--features", "efficientnet-lite0"]
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in line])
        said, told = capfd.readouterr()
        row = json.loads(out.read_text()) if out.exists() else {}
        out.unlink(missing_ok=True)
        return int(ended.value.code or 0), said + told, row

    return call


NAMES = [f"{kind}_efficientnet-lite0" for kind in ("frechet", "mmd", "precision", "recall")]


def test_a_set_is_the_same_in_whatever_it_is_stored(place, compare):
    rows = []
    for name in ("folder", "pictures.npz", "set", "shards", "pictures.tar"):
        code, said, row = compare(place / name, place / "other", "--batch-size", 7)
        assert code == 0, said
        assert f"frechet efficientnet-lite0    {row[NAMES[0]]:.3f}" in said
        assert row["made"]["pictures"] == 12
        assert row["networks"][0]["weights"] == "57934424"
        rows.append([row[name] for name in NAMES])
    for row in rows[1:]:
        assert rows[0] == pytest.approx(row, rel=1e-4)
    assert rows[0][0] > 1
    code, _, row = compare(place / "folder", place / "pictures.npz")
    assert row[NAMES[0]] == pytest.approx(0, abs=1e-3)
    assert row[NAMES[2]] == row[NAMES[3]] == 1


def test_saved_statistics_stand_for_their_set(place, compare, tmp_path):
    words = [place / "folder", place / "other"]
    code, said, whole = compare(*words, "--save-statistics", tmp_path / "s.npz")
    assert code == 0, said
    code, said, told = compare(place / "folder", tmp_path / "s.npz")
    assert code == 0, said
    assert told[NAMES[0]] == pytest.approx(whole[NAMES[0]], rel=1e-9)
    assert "no mmd efficientnet-lite0: of one set only statistics are known, no pictures" in said
    assert told["not_measured"].keys() == set(NAMES[1:])
    alone = tmp_path / "alone.npz"
    assert compare(place / "other", "--save-statistics", alone, writes=False)[:2] == (0, "")
    with np.load(alone) as ours, np.load(tmp_path / "s.npz") as theirs:
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    code, said, told = compare(tmp_path / "s.npz", place / "other")
    assert (code, told[NAMES[0]]) == (0, pytest.approx(0, abs=1e-3))
    with np.load(tmp_path / "s.npz") as stored:
        arrays = dict(stored)
    facts = json.loads(str(arrays["network"]))
    arrays["network"] = np.array(json.dumps({**facts, "weights": "00000000"}))
    np.savez(tmp_path / "other.npz", **arrays)
    code, said, _ = compare(place / "folder", tmp_path / "other.npz")
    assert code == 2
    assert "with weights 00000000" in said
    assert "they cannot be compared" in said


def test_files_are_cropped_to_the_smaller_size(place, compare, tmp_path):
    large = save_folder(tmp_path / "large", drawn(8, 0, side=96))
    code, _, row = compare(large, place / "pictures.npz")
    assert (code, row["made"]["side"], row["reference"]["side"]) == (0, SIDE, SIDE)
    code, _, row = compare(large, large, "--size", 48)
    assert (code, row["made"]["side"], row["reference"]["side"]) == (0, 48, 48)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{}/folder", "{}/nowhere"], "{}/nowhere"),
        (["{}/folder", "{}/none.npz"], "No such file"),
        (["{}/folder", "{}/other", "--size", "0"], "--size must be at least 1, not 0"),
        (["{}/folder", "{}/other", "--device", "gpu"], "gpu"),
        (["{}/folder", "{}/other", "--inception", "w.pth"], "--inception belongs to --features"),
        (["{}/folder", "{}/other", "--save-statistics", "s.txt"], "s.txt must end in .npz"),
        (["{}/folder"], "is compared with nothing: name a second set"),
        (["{}/folder", "--save-statistics", "s.npz"], "--out belongs to two sets of pictures"),
        (
            [
                "{}/folder",
                "{}/other",
                "--save-statistics=s.npz",
                "--features",
                "resnet18,inception",
            ],
            "writes those of one network",
        ),
    ],
)
def test_mistakes_are_one_line(place, compare, words, message):
    code, said, row = compare(*(word.format(place) for word in words))
    assert (code, row) == (2, {}), said
    assert message.format(place) in said
    assert said.count("\n") == 1
