# SPDX-License-Identifier: Apache-2.0
"""Tars and Hugging Face sets: what is taken for pictures and labels, what is refused and how."""

from __future__ import annotations

import gzip
import sys
import tarfile
from pathlib import Path

import pytest
from stored_pictures import (
    CLASSES,
    add,
    labels,
    opened,
    plain,
    refused,
    rows,
    save_folder,
    save_tars,
)

from ahpa_scale.errors import UserError
from ahpa_scale.unreachable import UnreachableError


def tar_of(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            add(tar, name, content)
    return path


# Tars


@pytest.mark.parametrize(
    ("files", "options", "wanted"),
    [
        ({"1.png": plain(), "1.cls": b"7"}, {}, "7"),
        ({"1.png": plain(), "1.cls": b"moth\n"}, {}, "moth"),
        ({"1.png": plain(), "1.json": b'{"label": "moth", "id": 3}'}, {}, "moth"),
        ({"1.png": plain(), "1.json": b'{"label": "no", "id": 3}'}, {"label_column": "id"}, "3"),
        ({"1.png": plain(), "1.cls": b"no", "1.kind": b"x"}, {"label_column": "kind"}, "x"),
        ({"moth/1.png": plain()}, {}, "moth"),
        ({"all/moth/1.png": plain()}, {"class_depth": 2}, "moth"),
        ({"1.png": plain()}, {"class_depth": 0}, "all"),
        ({"1.PNG": plain(), "1.cls": b"0", "1.txt": b"text"}, {}, "0"),
        ({"a/1.rgb.jpg": plain(kind="JPEG"), "a/1.cls": b"0"}, {}, "0"),
        ({"1.cls": b"2", "1.left.png": plain(), "1.right.png": plain()},
         {"image_column": "left.png"}, "2"),
    ],
)  # fmt: skip
def test_a_tars_labels_are_found(tmp_path, files, options, wanted):
    found = labels(opened(tar_of(tmp_path / "a.tar", files), **options))
    assert list(found.values()) == [wanted]
    (name,) = found
    assert name.removeprefix("a.tar/") in files


def test_what_a_tar_holds_besides_is_said(tmp_path):
    files = {"1.png": plain(), "1.cls": b"0", "1.txt": b"a", "._1.png": b"x", "2.txt": b"b"}
    source = opened(tar_of(tmp_path / "a.tar", {**files, "__meta__": b"x"}))
    assert len(source) == 1
    assert source.collection.left_out == "2 .txt"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"1.png": plain()}, "sample 1 has no label: no .cls, no label in .json and no folder"),
        ({"1.png": plain(), "1.cls": b" "}, "sample 1 has no label"),
        ({"1.png": plain(), "1.jpg": plain(), "1.cls": b"0"}, r"several pictures \(.png, .jpg"),
        ({"1.txt": b"text", "1.cls": b"0"}, "holds no pictures"),
        ({"1.png": plain(), "1.cls": b"-1"}, "has a picture of label -1"),
        ({"1.png": plain(), "1.cls": b"99999999"}, "has a picture of label 99999999"),
    ],
)
def test_tars_without_a_picture_or_label_are_refused(tmp_path, files, words):
    with pytest.raises(UserError, match=words):
        opened(tar_of(tmp_path / "a.tar", files))


def damaged(content: bytes, damage: str) -> bytes:
    third = 3 * (512 + 512 * -(-len(plain()) // 512)) + 3 * 1024
    if damage == "within a member":
        return content[: third + 700]
    if damage == "between members":
        return content[:third]
    if damage == "a header":
        return content[:third] + b"\xff" * 512 + content[third + 512 :]
    return {"gzip": gzip.compress(content), "text": b"<html>404</html>" * 90, "empty": b""}[damage]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("within a member", "no whole tar"),
        ("between members", "no whole tar: it has no end"),
        ("a header", "no whole tar"),
        ("text", "no whole tar"),
        ("empty", "no whole tar"),
        ("gzip", "is compressed"),
    ],
)
def test_a_tar_that_is_damaged_or_ends_in_the_middle_is_named(tmp_path, damage, words):
    files = {f"{n}.{end}": content for n in range(6) for end, content in
             (("png", plain(n)), ("cls", b"1"))}  # fmt: skip
    path = tar_of(tmp_path / "a.tar", files)
    assert len(opened(path)) == 6
    path.write_bytes(damaged(path.read_bytes(), damage))
    assert words in refused(path)


def test_several_tars_are_named_by_braces_and_stars(tmp_path):
    pictures = save_folder(tmp_path / "folder", 12)
    braces = save_tars(tmp_path / "tars", pictures)
    stars = str(tmp_path / "tars" / "*.tar")
    assert opened(braces).names == opened(stars).names
    assert "did you mean" in refused(tmp_path / "tars")
    assert "train-003.tar" in refused(braces.replace("002", "003"))
    assert "no file" in refused(tmp_path / "tars" / "x*.tar")
    assert "twice" in refused(tmp_path / "tars" / "train-00{0,0}.tar")
    assert "compressed" in refused(tmp_path / "a.tar.gz")


@pytest.mark.parametrize(("extra", "module"), [("webdataset", "webdataset"), ("hf", "datasets")])
def test_a_package_that_is_missing_is_named_with_its_extra(tmp_path, monkeypatch, extra, module):
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, module, None)
    place = tar_of(tmp_path / "a.tar", {}) if extra == "webdataset" else "hf:name"
    assert f"pip install 'ahpa-scale[{extra}]'" in refused(place)


# Hugging Face


@pytest.fixture
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def test_splits_and_columns_are_chosen_and_named(tmp_path, cache):
    import datasets

    pictures = save_folder(tmp_path / "folder", 9)
    table = rows(pictures)
    more = table.rename_column("label", "kind").add_column("number", list(range(9)))
    datasets.DatasetDict({"a": table, "b": more}).save_to_disk(tmp_path / "saved")
    assert "has no split train: give one of a, b" in refused(tmp_path / "saved")
    assert len(opened(f"hf:{tmp_path / 'saved'}:a")) == 9
    place = f"hf:{tmp_path / 'saved'}:b"
    assert "which column is the label?: give one of kind, number" in refused(place)
    assert "kind, number" in refused(place, label_column="kinds")
    assert opened(place, label_column="kind").classes == CLASSES
    numbered = opened(place, label_column="number")
    assert numbered.classes == tuple(map(str, range(9)))
    assert "--class-depth 2 is for folders" in refused(place, class_depth=2)
    assert opened(place, class_depth=0).classes == ("all",)


def test_plain_bytes_names_and_lost_pictures_of_a_parquet(tmp_path, cache):
    import datasets

    values = {"img": [plain(), b"", plain(1), None], "label": ["b", "a", "b", "a"]}
    datasets.Dataset.from_dict(values).to_parquet(str(tmp_path / "x.parquet"))
    source = opened(tmp_path / "x.parquet")
    assert source.classes == ("a", "b")
    found = {}
    for position in range(4):
        try:
            found[source.name(position)] = source.read(position).label
        except UserError as error:
            found[source.name(position)] = str(error).rpartition(": ")[2]
    assert found["0"] == found["2"] == 1
    assert "0 bytes" in found["1"]
    assert found["3"] == "its row is empty"
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no parquet PAR1")
    assert "cannot read" in refused(tmp_path / "x.parquet")


def test_a_row_names_files_of_its_own_folder_only(tmp_path, cache):
    import datasets

    for name in ("set/data/ant/1.png", "set/data/bee/2.png", "private.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(plain())
    source = opened(f"hf:{tmp_path / 'set'}")
    assert sorted(labels(source).values()) == ["ant", "bee"]
    values = {"image": [{"bytes": None, "path": str(tmp_path / "private.png")}], "label": ["x"]}
    datasets.Dataset.from_dict(values).to_parquet(str(tmp_path / "x.parquet"))
    with pytest.raises(UserError, match="names a file outside of the data set"):
        opened(tmp_path / "x.parquet").read(0)


def test_a_hub_that_does_not_answer_is_no_users_mistake(cache, monkeypatch):
    import datasets

    def away(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach the Hub")  # as the library does

    monkeypatch.setattr(datasets, "load_dataset", away)
    with pytest.raises(UnreachableError, match=r"hf:name:test: the hub does not answer"):
        opened("hf:name:test")
