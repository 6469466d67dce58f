# SPDX-License-Identifier: Apache-2.0
"""Which files of a folder are pictures: no hidden ones, links followed once, the rest counted."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ahpa_scale.data.pictures.listing import Listing
from ahpa_scale.data.sources import FolderSource
from ahpa_scale.errors import UserError


def save(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)


@pytest.fixture
def root(tmp_path) -> Path:
    for name in ("ant/1.png", "ant/deep/2.PNG", "bee/3.png"):
        save(tmp_path / "root" / name)
    return tmp_path / "root"


def names(root: Path) -> dict[str, list[str]]:
    listing = Listing(root, depth=1)
    return dict(zip(listing.classes, listing.names, strict=True))


PLAIN = {"ant": ["ant/1.png", "ant/deep/2.PNG"], "bee": ["bee/3.png"]}


def test_hidden_files_and_editors_copies_are_left_out_and_the_rest_is_counted(root):
    for name in (
        "ant/.1.png",
        "ant/._1.png",
        "bee/@eaDir/3.png",
        "__MACOSX/ant/1.png",
        ".cache/1.png",
        "bee/Thumbs.db",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "ant/1.png", root / name)
    for name in ("ant/1.png~", "ant/a.txt", "bee/b.TXT", "bee/LICENSE", "ant/c.svg", "loose.png"):
        (root / name).write_bytes(b"x")
    (root / "ant" / "odd.\x1b[31m").write_bytes(b"x")
    assert names(root) == PLAIN
    told = Listing(root, depth=1).left_out.split(", ")
    wanted = ["6 hidden", "2 .txt", "1 .png~", "1 without a suffix", "1 .svg"]
    assert sorted(told) == sorted([*wanted, "1 .png beside the class folders", "1 .\\x1b[31m"])
    assert Listing(root / "bee", depth=0).names == [["3.png"]]
    shutil.rmtree(root / "ant")
    save(root / "ant" / "1.png")
    assert Listing(root / "ant", depth=0).left_out is None


def test_links_are_followed_once(root, tmp_path):
    save(tmp_path / "elsewhere" / "4.png")
    for link, target in (
        ("ant/again", tmp_path / "elsewhere"),
        ("ant/and-again", tmp_path / "elsewhere"),
        ("ant/back", root / "ant"),
        ("ant/up", ".."),
        ("ant/other-class", root / "bee"),
        ("ant/a-way-to-deep", root / "ant" / "deep"),
        ("loop", root),
        ("higher", tmp_path),
        ("bee/one.png", root / "ant" / "1.png"),
        ("bee/gone.png", "nowhere"),
        ("bee/gone", "nowhere"),
        ("bee/itself.png", "itself.png"),
        ("bee/notes.txt", "nowhere"),
    ):
        (root / link).symlink_to(target)
    found = names(root)
    assert found["ant"] == ["ant/1.png", "ant/again/4.png", "ant/deep/2.PNG"]
    # Links to nothing are listed, so that their reader rejects them by name.
    wanted = ["bee/3.png", "bee/gone", "bee/gone.png", "bee/itself.png", "bee/one.png"]
    assert found["bee"] == wanted
    told = Listing(root, depth=1).left_out
    assert told == "7 links to folders that are read already, 1 .txt"


def test_a_class_may_be_a_link(root, tmp_path):
    save(tmp_path / "elsewhere" / "4.png")
    (root / "cow").symlink_to(tmp_path / "elsewhere")
    assert names(root) == {**PLAIN, "cow": ["cow/4.png"]}
    (root / "dog").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"class folders .*/cow and .*/dog are one"):
        names(root)
    (root / "dog").unlink()
    (root / "dog").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"root/dog may be a class, but links to nothing"):
        names(root)


def test_names_of_any_kind_are_read(root):
    for name in ("é猫\u200d.png", "x" * 250 + ".png", "a b'\n.png", os.fsdecode(b"\xff.png")):
        save(root / "ant" / name)
    source = FolderSource(str(root), size=8)
    assert len(source) == 7
    assert {source.read(position).label for position in range(7)} == {0, 1}
    (root / os.fsdecode(b"\xfe")).mkdir()
    with pytest.raises(UserError, match=r"class folder .*\\udcfe is not named in UTF-8"):
        names(root)


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(root, monkeypatch):
    scan = os.scandir

    def refuse(path: str) -> object:
        if path.endswith("deep"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may list everything
    with pytest.raises(UserError, match=r"cannot list .*ant/deep: Permission denied"):
        names(root)


def test_a_pipe_is_not_waited_for(root):
    os.mkfifo(root / "ant" / "pipe.png")
    os.mkfifo(root / "ant" / "pipe")
    found: list[object] = []

    def read() -> None:
        source = FolderSource(str(root), size=8)
        for position in range(len(source)):
            try:
                found.append(source.read(position).name)
            except UserError as error:
                found.append(error)

    reading = threading.Thread(target=read, daemon=True)
    reading.start()
    reading.join(60)
    assert [str(each) for each in found if isinstance(each, UserError)] == [
        f"cannot read the picture {root}/ant/pipe.png: it is a named pipe, not a file"
    ]
    assert len(found) == 4
