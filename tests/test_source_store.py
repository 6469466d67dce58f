# SPDX-License-Identifier: Apache-2.0
"""Pictures in a store (a real S3 server on loopback) are those on a disk."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fault_proxy import KINDS as KINDS_OF_FAULTS
from fault_proxy import Faults
from s3_server import BUCKET, S3Server, s3_server
from stored_pictures import CLASSES, labels, opened, plain, save_all

from ahpa_scale import storage
from ahpa_scale.data.pictures.decode import UnreadablePictureError
from ahpa_scale.errors import UserError

KINDS = ("folder", "tar", "saved", "parquet", "mds", "npz", "metadata", "deep")
COUNT = 24


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[S3Server]:
    with (
        s3_server(tmp_path_factory.mktemp("store")) as running,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in running.environment.items():
            patch.setenv(name, value)
        patch.setenv(storage.PATIENCE, "5")
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield running


@pytest.fixture(scope="module")
def places(server, tmp_path_factory) -> dict[str, tuple[str, str]]:
    """Of each kind, its local and its remote name."""
    root = tmp_path_factory.mktemp("stored")
    local = save_all(root, COUNT, 16)
    client = server.client()
    for path in root.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), BUCKET, path.relative_to(root).as_posix())
    return {
        kind: (place, place.replace(str(root), f"s3://{BUCKET}")) for kind, place in local.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_stores_pictures_are_those_of_the_disk(places, kind):
    local, remote = places[kind]
    options = {"class_depth": 2} if kind == "deep" else {}
    here, there = opened(local, **options), opened(remote, **options)
    assert there.classes == here.classes == CLASSES
    assert there.names == here.names
    for position in range(COUNT):
        found, wanted = there.read(position), here.read(position)
        np.testing.assert_array_equal(found.image_HWC, wanted.image_HWC)
        assert found.label == wanted.label
    if kind in ("folder", "tar", "mds", "metadata"):
        assert there.digests(2) == here.digests(2), "machines with a copy may join"


def test_a_glob_names_a_stores_tars(places):
    _, remote = places["tar"]
    stars = f"{remote.rpartition('/')[0]}/train-*.tar"
    assert opened(stars).names == opened(remote).names


def test_what_a_store_lacks_is_named(server, places):
    _, remote = places["tar"]
    for place, words in (
        (remote.replace("002", "003"), "no file .*train-003.tar"),
        (f"s3://{BUCKET}/nothing", "nothing at"),
        (f"s3://{BUCKET}/tar", "did you mean .*tar/[*].tar"),
    ):
        with pytest.raises(UserError, match=words):
            opened(place)


def test_idx_files_and_odd_names_of_a_store(server):
    client = server.client()
    for kind, array in (("images-idx3", np.zeros((4, 28, 28))), ("labels-idx1", np.arange(4) % 2)):
        head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        content = gzip.compress(head + array.astype(np.uint8).tobytes())
        client.put_object(Bucket=BUCKET, Key=f"idx/train-{kind}-ubyte.gz", Body=content)
    assert opened(f"s3://{BUCKET}/idx").classes == ("0", "1")
    for key in (
        "odd/ä 猫/é + %.png",
        "odd/b/1.png",
        "odd/b/.hidden.png",
        "odd/b/notes.txt",
        "odd/x.png",
    ):
        client.put_object(Bucket=BUCKET, Key=key, Body=plain())
    source = opened(f"s3://{BUCKET}/odd")
    assert labels(source) == {"ä 猫/é + %.png": "ä 猫", "b/1.png": "b"}
    told = source.collection.left_out.split(", ")
    assert sorted(told) == ["1 .png beside the class folders", "1 .txt", "1 hidden"]
    client.delete_object(Bucket=BUCKET, Key="odd/b/1.png")
    (position,) = [p for p in range(2) if source.name(p) == "b/1.png"]
    with pytest.raises(UnreadablePictureError, match="nothing at s3://"):
        source.read(position)


def test_copies_of_remote_files_go_with_their_source(places, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for kind in ("npz", "parquet", "saved"):
        source = opened(places[kind][1])
        assert os.listdir(tmp_path)
        assert source.read(0).image_HWC.shape == (16, 16, 3)
        del source
        assert not [path for path in Path(tmp_path).rglob("*") if path.is_file()], kind


@pytest.mark.parametrize("kind", ["folder", "tar", "mds", "npz"])
def test_pictures_come_whole_from_a_store_that_fails_now_and_then(places, proxy, kind):
    local, remote = places[kind]
    proxy.set(Faults(share=0.2), seed=1)
    there, here = opened(remote), opened(local)
    for position in range(COUNT):
        found, wanted = there.read(position), here.read(position)
        np.testing.assert_array_equal(found.image_HWC, wanted.image_HWC)
    assert sum(proxy.counts[kind] for kind in KINDS_OF_FAULTS) > 0
