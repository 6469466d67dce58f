# SPDX-License-Identifier: Apache-2.0
"""A data set from a stranger: it writes nowhere but into its own cache, and takes no more memory
than it has bytes.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from streaming import MDSWriter
from streaming.base.format.mds.reader import MDSReader

from ahpa_scale.data import codec
from ahpa_scale.data.card import read_card
from ahpa_scale.data.codec_file import CODEC_NAME
from ahpa_scale.data.index import index_digest
from ahpa_scale.data.prepare import prepare
from ahpa_scale.data.stream import build_loader
from ahpa_scale.errors import UserError

pytestmark = pytest.mark.usefixtures("prepared")


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], Any], tuple[Path]]:
        return Path.touch, (self.path,)


def stranger(prepared: str, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a data set whose index is changed, with a card that bears its fingerprint."""
    shutil.copytree(prepared, folder)
    index = json.loads((folder / "index.json").read_text())
    change(index)
    text = json.dumps(index, sort_keys=True)
    (folder / "index.json").write_text(text)
    told = {"fingerprint": hashlib.sha256(text.encode()).hexdigest()[:16]}
    change_card(folder, told)
    return folder


def change_card(folder: Path, told: dict[str, Any]) -> None:
    card = folder / "dataset.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), **told}))


def tree(root: Path) -> set[Path]:
    return set(root.rglob("*"))


def first(index: dict[str, Any]) -> dict[str, Any]:
    return index["shards"][0]


@pytest.mark.parametrize(
    "fingerprint", ["../../outside", "/tmp/outside", "..", "", "a\0b", "A" * 16]
)
def test_a_fingerprint_names_no_folder_but_the_cache_of_its_own(prepared, tmp_path, fingerprint):
    shutil.copytree(prepared, tmp_path / "in/set")
    change_card(tmp_path / "in/set", {"fingerprint": fingerprint})
    before = tree(tmp_path)
    with pytest.raises(UserError, match=r"dataset\.json is not a card .*: fingerprint: "):
        build_loader(str(tmp_path / "in/set"), batch_size=4, local=str(tmp_path / "in/cache"))
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "name",
    ["../../outside.mds", "/tmp/ahpa-outside.mds", "a\0b.mds", "x/../../shard.00000.mds", "",
     "index.json", "shard.00000.mds\n", "part-00000-of-00002/../shard.00000.mds"],
)  # fmt: skip
def test_a_shard_is_named_as_preparations_name_it(prepared, tmp_path, name):
    url = stranger(
        prepared, tmp_path / "in/set", lambda index: first(index)["raw_data"].update(basename=name)
    )
    before = tree(tmp_path)
    with pytest.raises(UserError, match=r"shards\.0\.raw_data\.basename: ") as caught:
        build_loader(str(url), batch_size=4, local=str(tmp_path / "in/cache"))
    assert len(str(caught.value).splitlines()) == 1
    assert tree(tmp_path) == before


def test_a_column_that_would_be_unpickled_is_refused(prepared, tmp_path):
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))

    def plant(index: dict[str, Any]) -> None:
        for shard in index["shards"]:
            shard["column_encodings"] = ["pkl"] * len(shard["column_encodings"])
            shard["column_sizes"] = [None] * len(shard["column_sizes"])

    url = stranger(prepared, tmp_path / "set", plant)
    for shard in url.glob("*.mds"):
        shard.write_bytes(bomb * 100)
    with pytest.raises(UserError, match=r"has other columns than dataset\.json tells of"):
        build_loader(str(url), batch_size=4)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda i: first(i).update(samples=10**9), "cannot hold 1000000000 samples"),
        (lambda i: first(i).update(samples=10**30), "samples"),
        (lambda i: first(i).update(samples=-1), "samples"),
        (lambda i: first(i).update(samples=1), "samples, and dataset.json counts 48"),
        (lambda i: first(i)["raw_data"].update(bytes=10**12), "bytes"),
        (lambda i: first(i).update(column_sizes=[2**40] * 7), "other columns"),
        (lambda i: first(i).update(compression="zstd"), "compression"),
        (lambda i: first(i).update(hashes=["md5"]), "hashes"),
        (lambda i: first(i).update(format="csv"), "format"),
        (lambda i: i["shards"].append(first(i)), "comes twice"),
        (lambda i: i.update(shards=[]), "shards"),
    ],
)  # fmt: skip
def test_counts_and_kinds_of_an_index_are_bounded_first(prepared, tmp_path, change, problem):
    url = stranger(prepared, tmp_path / "set", change)
    with pytest.raises(UserError, match=problem) as caught:
        build_loader(str(url), batch_size=4)
    assert "index.json" in str(caught.value)


def test_streaming_reads_the_index_that_was_checked(prepared, tmp_path):
    """Also one that lies in the cache already, put there by somebody else."""
    cache = tmp_path / "cache"
    list(build_loader(prepared, batch_size=4, local=str(cache)))
    (copy,) = cache.glob("*/index.json")
    good = copy.read_bytes()
    copy.write_bytes(good.replace(b"shard.00000.mds", b"../../bad.0.mds"))
    list(build_loader(prepared, batch_size=4, local=str(cache)))
    assert copy.read_bytes() == good
    (other := tmp_path / "set").mkdir()
    for path in Path(prepared).iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    (other / "index.json").write_bytes(good + b"\n")
    with pytest.raises(UserError, match=r"not the index that its dataset\.json was written for"):
        build_loader(str(other), batch_size=4)


def rewrite(folder: Path, card: Any, **told: Any) -> None:
    """Every shard anew, by streaming itself, some columns of all samples replaced."""
    shards = json.loads((folder / "index.json").read_text())["shards"]
    readers = [MDSReader.from_json(str(folder), None, shard) for shard in shards]
    kept = [reader[i] for reader in readers for i in range(len(reader))]
    others = ("dataset.json", CODEC_NAME)
    stay = {name: (folder / name).read_bytes() for name in others if (folder / name).exists()}
    shutil.rmtree(folder)
    with MDSWriter(out=str(folder), columns=codec.columns(card), hashes=["xxh64"]) as writer:
        for sample in kept:
            writer.write({**sample, **{name: make(sample[name]) for name, make in told.items()}})
    for name, content in stay.items():
        (folder / name).write_bytes(content)
    change_card(folder, {"fingerprint": index_digest((folder / "index.json").read_bytes())})


def spoiled(value: Any) -> Any:
    value = value.copy()
    value.reshape(-1)[-1] = float("inf")
    return value


@pytest.mark.parametrize(
    ("told", "problem"),
    [
        ({"label": lambda label: 3}, "its label is 3, and there are 3 classes"),
        ({"label": lambda label: -1}, "its label is -1"),
        ({"moments": spoiled}, "its moments holds values that are not finite"),
        ({"prior.encoder.mid_block": spoiled}, "its prior.encoder.mid_block holds"),
    ],
)
def test_what_no_preparation_writes_is_named_with_its_sample(pooled, tmp_path, told, problem):
    folder = Path(shutil.copytree(pooled, tmp_path / "set"))
    rewrite(folder, read_card(pooled), **told)
    with pytest.raises(UserError, match=rf"sample \d+ in shard\.00000\.mds: {problem}"):
        list(build_loader(str(folder), batch_size=4))


def test_a_picture_that_says_it_is_huge_is_not_unpacked(tmp_path):
    options = {"vae_path": "demo", "size": 32, "num_samples": 4, "progress": False}
    card = prepare("demo", str(tmp_path / "set"), kind="images", **options)
    assert len(list(build_loader(str(tmp_path / "set"), batch_size=4))) == 1
    rewrite(tmp_path / "set", card, image=lambda _: Image.new("RGB", (4000, 4000)))
    with pytest.raises(UserError, match="its picture is PNG of 4000x4000"):
        list(build_loader(str(tmp_path / "set"), batch_size=4))
