# SPDX-License-Identifier: Apache-2.0
"""MDS shards, arrays, idx files and metadata files: what is taken, and how the rest is refused."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from stored_pictures import (
    SIZE,
    labels,
    opened,
    plain,
    refused,
)
from streaming import MDSWriter

from ahpa_scale.data.idx import load_idx
from ahpa_scale.data.sources import SourceOptions, open_source
from ahpa_scale.errors import UserError

# MDS


class Trap:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.place,)


def test_only_bytes_are_taken_from_shards(tmp_path):
    columns = {"jpeg": "jpeg", "pil": "pil", "raw": "ndarray:uint8:20,20,3", "grey": "pil",
               "trap": "pkl", "y": "uint8", "cls": "str_int", "text": "str"}  # fmt: skip
    image = Image.new("RGB", (20, 20), (5, 9, 9))
    sample = {"jpeg": image, "pil": image, "raw": np.asarray(image), "grey": image.convert("L"),
              "trap": Trap(tmp_path / "sprung"), "y": np.uint8(3), "cls": 4,
              "text": "é"}  # fmt: skip
    with MDSWriter(out=str(tmp_path / "set"), columns=columns) as writer:
        writer.write(sample)
    for column in ("jpeg", "pil", "raw", "grey"):
        source = opened(tmp_path / "set", image_column=column)
        assert source.classes[source.read(0).label] == "4"
        if column != "grey":
            assert np.abs(source.read(0).image_HWC.astype(int) - [5, 9, 9]).max() <= 3
    for label, name in (("y", "3"), ("text", "é")):
        source = opened(tmp_path / "set", image_column="pil", label_column=label)
        assert source.classes[source.read(0).label] == name
    assert "labels are whole numbers or text" in refused(
        tmp_path / "set", image_column="pil", label_column="trap"
    )
    assert "has no image in a column trap: give one of" in refused(
        tmp_path / "set", image_column="trap"
    )
    assert not (tmp_path / "sprung").exists()
    pickle.loads(pickle.dumps(sample["trap"]))
    assert (tmp_path / "sprung").exists(), "the trap works"


def mds(folder: Path, **options: object) -> Path:
    with MDSWriter(
        out=str(folder), columns={"image": "bytes", "label": "int"}, **options
    ) as writer:
        for number in range(6):
            writer.write({"image": plain(number), "label": number % 3})
    return folder


def test_shards_that_are_compressed_cut_or_elsewhere_are_refused(tmp_path):
    assert "is compressed (zstd)" in refused(mds(tmp_path / "small", compression="zstd"))
    folder = mds(tmp_path / "set")
    assert labels(opened(folder)) == {str(n): str(n % 3) for n in range(6)}
    shard, index = folder / "shard.00000.mds", folder / "index.json"
    content, told = shard.read_bytes(), index.read_text()
    shard.write_bytes(content[:-9])
    assert "is cut short" in refused(folder)
    shard.write_bytes(content[:8] + b"\xff\xff\xff\x7f" + content[12:])
    assert "is damaged" in refused(folder)
    index.write_text(told.replace("shard.00000.mds", "../../elsewhere.mds"))
    assert "outside of its folder" in refused(folder)
    index.write_text(told[:-9])
    assert "index.json" in refused(folder)


# Arrays


def arrays(count: int = 6) -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
    return images, np.arange(count) % 3


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("names", [("images", "labels"), ("arr_0", "arr_1")])
def test_pixels_of_an_npz_come_unchanged(tmp_path, save, names):
    images, numbers = arrays()
    save(tmp_path / "a.npz", **dict(zip(names, (images, numbers), strict=True)))
    source = opened(tmp_path / "a.npz")
    for position in range(6):
        found = source.read(position)
        np.testing.assert_array_equal(found.image_HWC, images[int(found.name)])
        assert found.label == numbers[int(found.name)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"labels": arrays()[1]}, "has no pictures as images or arr_0"),
        ({"images": arrays()[0]}, "has no labels as labels or arr_1"),
        ({"images": arrays()[0] / 255, "labels": arrays()[1]}, "holds float64 .* as pictures"),
        ({"images": arrays()[0], "labels": arrays()[1][:5]}, "6 pictures need 6 whole numbers"),
        ({"images": np.array([{}] * 6), "labels": arrays()[1]}, "images can't be read"),
        ({"images": arrays()[0], "labels": np.array([{}] * 6)}, "labels can't be read"),
    ],
)
def test_arrays_that_are_no_pictures_or_labels_are_refused(tmp_path, content, words):
    np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(UserError, match=words):
        opened(tmp_path / "a.npz")


def test_an_npz_that_is_none_or_not_there_is_named(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK no zip")
    assert "is no .npz" in refused(tmp_path / "a.npz")
    assert "did you mean" in refused(tmp_path / "b.npz")


def test_idx_files_come_as_unpack_idx_pads_them(tmp_path):
    for stem, count in (("train", 9), ("t10k", 6)):
        images = np.random.default_rng(1).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", np.arange(count) % 3)):
            head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            content = gzip.compress(head + array.astype(np.uint8).tobytes())
            (tmp_path / f"{stem}-{kind}-ubyte.gz").write_bytes(content)
    assert opened(tmp_path, class_depth=0).classes == ("all",)
    assert "--label-column is of no use" in refused(tmp_path, label_column="label")
    split = load_idx(tmp_path)
    for place, name in (
        (tmp_path, "train"),
        (tmp_path / "t10k-images-idx3-ubyte.gz", "test"),
        (tmp_path / "t10k-labels-idx1-ubyte.gz", "test"),
    ):
        source = open_source(str(place), SourceOptions(size=32))
        images, numbers = split[name]
        assert len(source) == len(images)
        found = source.read(2)
        np.testing.assert_array_equal(found.image_HWC[..., 0], images[int(found.name)])
        assert found.label == numbers[int(found.name)]


def test_metadata_of_a_folder_is_read_or_refused(tmp_path):
    for name in ("a.png", "b.png", "deep/c.png", "d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(plain())
    lines = [{"file_name": n, "label": "x", "kind": k} for n, k in
             (("a.png", 10), ("./b.png", 9), ("deep/c.png", 9))]  # fmt: skip
    where = tmp_path / "metadata.jsonl"

    def write(*told: dict[str, object]) -> None:
        where.write_text("".join(json.dumps(each) + "\n" for each in told))

    write(*lines)
    source = opened(tmp_path)
    assert labels(source) == dict.fromkeys(("a.png", "b.png", "deep/c.png"), "x")
    assert "1 pictures that the metadata file does not name" in source.collection.left_out
    numbered = labels(opened(tmp_path, label_column="kind"))
    assert numbered == {"a.png": "10", "b.png": "9", "deep/c.png": "9"}
    assert labels(opened(tmp_path, class_depth=1)) == {"deep/c.png": "deep"}
    for told, words in (
        ([{"label": "x"}], "line 1 has no file_name"),
        ([*lines, lines[1]], "line 4 names 'b.png' again"),
        ([{**lines[0], "file_name": "../a.png"}], "no path below the folder"),
        ([{"file_name": "a.png", "size": 1, "text": ""}], "size, text as --label-column"),
        ([lines[0], {"file_name": "b.png"}], "line 2 has no label"),
    ):
        write(*told)
        assert words in refused(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,label\na.png,x\nb.png\n")
    assert "metadata.jsonl and metadata.csv: leave one" in refused(tmp_path)
    where.unlink()
    assert "metadata.csv, line 3 has 1 fields" in refused(tmp_path)
    (tmp_path / "metadata.csv").unlink()
    assert "has no metadata.jsonl or metadata.csv" in refused(tmp_path, label_column="label")
    both = refused(tmp_path, class_depth=1, label_column="label")
    assert both == "labels come from --class-depth or from --label-column: give one of them"
    assert "--image-column is for tables" in refused(tmp_path, image_column="a")
