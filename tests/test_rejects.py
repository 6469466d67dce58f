# SPDX-License-Identifier: Apache-2.0
"""Pictures that cannot be read are listed and left out, up to a share; parts see the same files."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from data_sets import COUNT, GRID, SIZE, batches, everything, save_features, save_pictures
from job import run

from ahpa_scale.data.card import read_card
from ahpa_scale.data.codec_file import CODEC_NAME
from ahpa_scale.data.parts import prepare_part
from ahpa_scale.data.prepare import prepare
from ahpa_scale.data.settings import Part
from ahpa_scale.data.sources import FolderSource, StoredSource
from ahpa_scale.data.vae_training import VAETraining, train_vae
from ahpa_scale.errors import UserError
from ahpa_scale.evaluation.picture_sets.folder import Folder

OPTIONS = {"size": SIZE, "batch_size": 6, "progress": False, "scaling": "channel"}


def spoil(root: Path) -> dict[str, str]:
    """Adds pictures that cannot be read; their names, and words of the reasons."""
    cut = (root / "cow" / "019.JPEG").read_bytes()
    (root / "ant" / "cut.jpg").write_bytes(cut[: len(cut) // 2])
    (root / "bee" / "empty.png").touch()
    (root / "bee" / "deeper" / "text.webp").write_text("<html>404</html>")
    (root / "cow" / "gone.bmp").symlink_to("nowhere")
    os.mkfifo(root / "cow" / "pipe.png")
    return {
        "ant/cut.jpg": "Truncated",
        "bee/empty.png": "0 bytes",
        "bee/deeper/text.webp": "it holds no AVIF, BMP, GIF",
        "cow/gone.bmp": "No such file",
        "cow/pipe.png": "a named pipe",
    }


@pytest.fixture
def spoiled(tmp_path) -> tuple[Path, dict[str, str]]:
    save_pictures(tmp_path / "spoiled")
    return tmp_path / "spoiled", spoil(tmp_path / "spoiled")


def listed(out: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert all(set(line) == {"picture", "reason"} for line in lines)
    return {line["picture"]: line["reason"] for line in lines}


def assert_listed(out: Path, wanted: dict[str, str]) -> None:
    found = listed(out)
    assert found.keys() == wanted.keys()
    for name, reason in wanted.items():
        assert reason in found[name]


def assert_same_values(found: str, wanted: str) -> None:
    first, second = batches(found), batches(wanted)
    assert torch.equal(everything(first, "label"), everything(second, "label"))
    for key in second[0].keys() - {"index", "epoch", "label"}:
        mine, theirs = (everything(each, key).float() for each in (first, second))
        # A step of int8 is a hundredth of the largest value, and last bits decide which one.
        assert torch.allclose(mine, theirs, rtol=0.01, atol=0.06), key


def good_order(root: Path, rejected: dict[str, str]) -> list[str]:
    return [name for name in FolderSource(str(root), size=SIZE).names if name not in rejected]


@pytest.mark.parametrize("kind", ["latents", "images"])
def test_what_cannot_be_read_is_listed_and_left_out(spoiled, vae_path, tmp_path, kind):
    root, rejected = spoiled
    out, told = tmp_path / "set", []
    options = {**OPTIONS, "vae_path": vae_path, "kind": kind, "rejects": 0.1}
    card = prepare(str(root), str(out), tell=told.append, **options)
    assert card == read_card(out)
    assert card.num_samples == COUNT
    assert_listed(out, rejected)
    assert told[0] == f"5 of 53 pictures cannot be read and are left out: see {out}/rejects.jsonl"
    assert told[1] == "not looked at: 1 .txt"
    labels = everything(batches(str(out)), "label").tolist()
    assert labels == [card.classes.index(n.split("/")[0]) for n in good_order(root, rejected)]


def test_other_pictures_are_what_they_are_without_the_rejects(spoiled, vae_path, tmp_path):
    root, rejected = spoiled
    save_features(root, tmp_path / "features")
    options = {**OPTIONS, "vae_path": vae_path, "features": str(tmp_path / "features")}
    prepare(str(root), str(tmp_path / "set"), rejects=0.1, **options)
    source = FolderSource(str(root), size=SIZE, grid=GRID, features=options["features"])
    stored = everything(batches(str(tmp_path / "set")), "prior.external")
    for row, name in enumerate(good_order(root, rejected)):
        read = source.read(source.names.index(name))
        np.testing.assert_array_equal(stored[row], read.external_Cgg.astype(np.float16))


def test_one_picture_never_ends_a_pass_and_none_may_be_asked_for(vae_path, tmp_path):
    root = tmp_path / "pictures"
    save_pictures(root, 20)
    (root / "ant" / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    options = {**OPTIONS, "vae_path": vae_path}
    assert prepare(str(root), str(tmp_path / "set"), **options).num_samples == 20
    with pytest.raises(UserError, match=r"1 of 21 .* and 0 % may be: ant/cut.png"):
        prepare(str(root), str(tmp_path / "strict"), rejects=0.0, **options)
    assert sorted(os.listdir(tmp_path)) == ["pictures", "set"]


def test_a_lost_class_is_said(vae_path, tmp_path):
    root, told = tmp_path / "pictures", []
    save_pictures(root, 20)
    (root / "dog").mkdir()
    (root / "dog" / "only.png").touch()
    out = str(tmp_path / "set")
    card = prepare(str(root), out, vae_path=vae_path, tell=told.append, **OPTIONS)
    assert card.classes == ("ant", "bee", "cow", "dog"), "labels stay those of the folder"
    assert told[-1] == "class dog has no picture left: none can be read"


def test_too_many_are_one_line_and_leave_nothing(spoiled, tmp_path):
    root, _ = spoiled
    command = [sys.executable, "-m", "ahpa_scale.cli", "prepare", str(root), "--size", "32"]
    command += ["--out", str(tmp_path / "set"), "--no-progress"]
    done = run(*command)
    assert done.returncode == 2, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: 2 of 53 pictures cannot be read, and 1 % may be: ")
    assert line.endswith("mend them, or allow more with --rejects")
    assert os.listdir(tmp_path) == ["spoiled"]
    done = run(*command, "--rejects", "0.1")
    assert done.returncode == 0, done.stderr
    assert f"5 of 53 pictures cannot be read and are left out: see {tmp_path}/set" in done.stderr
    assert "48 pictures" in done.stdout
    assert sorted(os.listdir(tmp_path)) == ["set", "spoiled"]


def test_a_source_that_goes_away_ends_with_a_line(vae_path, tmp_path, monkeypatch):
    root = tmp_path / "pictures"
    save_pictures(root)
    read = StoredSource.read

    def lose(source: StoredSource, position: int) -> object:
        if position == 20 and root.exists():
            root.rename(tmp_path / "moved")
        return read(source, position)

    monkeypatch.setattr(StoredSource, "read", lose)
    with pytest.raises(UserError, match=r"of 48 pictures cannot be read.*No such file"):
        prepare(str(root), str(tmp_path / "set"), vae_path=vae_path, workers=1, **OPTIONS)
    assert os.listdir(tmp_path) == ["moved"]


def make(root: Path, out: Path, index: int, count: int, vae_path: str, **options: object):
    wanted = {**OPTIONS, "vae_path": vae_path, "rejects": 0.1, **options}
    return prepare_part(str(root), str(out), Part(index, count), **wanted)


@pytest.mark.parametrize("count", [3, 53])
def test_parts_join_their_rejects(spoiled, vae_path, tmp_path, count):
    root, rejected = spoiled
    out, whole, told = tmp_path / "set", tmp_path / "whole", []
    prepare(str(root), str(whole), vae_path=vae_path, rejects=0.1, **OPTIONS)
    for index in range(count):  # with 53, the parts of some are empty
        card = make(root, out, index, count, vae_path, tell=told.append)
    assert card == read_card(out)
    assert card.num_samples == COUNT
    assert_listed(out, rejected)
    assert (out / "rejects.jsonl").read_bytes() == (whole / "rejects.jsonl").read_bytes()
    assert f"5 of 53 pictures cannot be read and are left out: see {out}/rejects.jsonl" in told
    assert_same_values(str(out), str(whole))


def test_parts_count_their_rejects_together(spoiled, vae_path, tmp_path):
    root, _ = spoiled
    out = tmp_path / "set"
    for index in range(2):
        assert make(root, out, index, 3, vae_path) is None
    with pytest.raises(UserError, match="of 53 pictures cannot be read, and 8 % may be"):
        make(root, out, 2, 3, vae_path, rejects=0.08)
    assert not (out / "dataset.json").exists()
    assert make(root, out, 2, 3, vae_path).num_samples == COUNT, "the same parts, with more allowed"


@pytest.mark.parametrize("change", ["one less", "another size", "another name", "another class"])
def test_parts_of_machines_that_see_other_files_do_not_join(vae_path, tmp_path, change):
    root, out = tmp_path / "pictures", tmp_path / "set"
    save_pictures(root, 24)
    make(root, out, 0, 2, vae_path)
    picture = root / "bee" / "001.jpg"
    if change == "one less":
        picture.unlink()
    elif change == "another size":
        picture.write_bytes(picture.read_bytes() + b"\0")
    elif change == "another name":
        picture.rename(picture.with_name("0001.jpg"))
    else:
        (root / "bee").rename(root / "bug")
    seen = "no pictures" if change == "another class" else r"\d+ pictures, digest \w{8}"
    with pytest.raises(
        UserError,
        match=r"part-00000-of-00002/part.json was made of other files: class bee had 12 pictures, "
        rf"digest \w{{8}}, and this machine sees {seen}; give all machines the same files",
    ) as caught:
        make(root, out, 1, 2, vae_path)
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(out)) == [CODEC_NAME, "part-00000-of-00002"]


def test_a_vae_is_trained_without_what_cannot_be_read(tmp_path):
    root, told = tmp_path / "pictures", []
    save_pictures(root, 40)
    source = FolderSource(str(root), size=SIZE)
    (root / source.names[5]).write_bytes(b"")
    small = VAETraining(block_out_channels=(8,), latent_channels=2, steps=8, batch_size=8)
    train_vae(tmp_path / "vae", source, small, progress=False, tell=told.append)
    assert list(listed(tmp_path / "vae")) == [source.names[5]]
    assert told[0].startswith("1 of 40 pictures cannot be read and are left out")
    for name in source.names:
        (root / name).write_bytes(b"")
    with pytest.raises(UserError, match="2 of 40 pictures cannot be read, and 1 % may be"):
        train_vae(tmp_path / "none", source, small, progress=False)
    assert sorted(os.listdir(tmp_path)) == ["pictures", "vae"]


def test_reference_pictures_that_cannot_be_read_are_left_out(tmp_path):
    save_pictures(tmp_path, 20)
    before = Folder(str(tmp_path), SIZE).digest
    (tmp_path / "ant" / ".hidden.png").touch()
    assert Folder(str(tmp_path), SIZE).digest == before
    os.mkfifo(tmp_path / "ant" / "pipe.png")
    folder = Folder(str(tmp_path), SIZE)
    assert sum(map(len, folder.batches(1, shown=False))) == 20
    assert len(folder.rejects) == 1
    (tmp_path / "ant" / "gone.png").symlink_to("nowhere")
    with pytest.raises(UserError, match="2 of 22 pictures cannot be read, and 1 % may be"):
        list(Folder(str(tmp_path), SIZE).batches(4, shown=False))
