# SPDX-License-Identifier: Apache-2.0
"""Planted pickles never run, under whatever name; planted manifests reach no other folder."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bad_stores import Files
from faulty_store import Outcome, assert_same, fill, resumed, run, warnings_of

from ahpa_scale.checkpoint.errors import CheckpointError
from ahpa_scale.checkpoint.local_copy import open_checkpoint, open_newest
from ahpa_scale.checkpoint.manifest import FileEntry, Manifest
from ahpa_scale.checkpoint.resume import Resume

OURS = ("rank00000.safetensors", "state.json", "manifest.json")
#: What our loader, Composer's or torch's would open in a folder of checkpoints.
BESIDE = (
    *("latest", "latest.pt", "latest-rank0.pt", "latest-rank0.pt.symlink", "latest.symlink"),
    *("ba4", "ba4.pt", "ba4-rank0.pt", "ep0-ba4-rank0.pt", "ba8.pt", ".metadata", "manifest.json"),
)
WITHIN = (".metadata", "__0_0.distcp", "__0_0.pt", "weights.pt", "rank00001.safetensors", "latest")


class Planted:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "executed"


@pytest.fixture(params=["pickle", "torch"])
def planted(request: pytest.FixtureRequest, marker: Path) -> bytes:
    """A file that touches `marker`, shown to do so when it is loaded."""
    buffer = io.BytesIO()
    if request.param == "pickle":
        pickle.dump(Planted(marker), buffer)
        pickle.loads(buffer.getvalue())
    else:
        torch.save({"state": Planted(marker)}, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=False)
    assert marker.exists(), "the pickle does nothing, so nothing is tested"
    marker.unlink()
    return buffer.getvalue()


def test_every_name_beside_and_within_checkpoints(
    planted: bytes, marker: Path, files: Files, whole: Outcome, tmp_path: Path
):
    """The newest checkpoint is as it was saved, and is used."""
    beside = {name: planted for name in BESIDE if name != "ba4"}
    within = {f"ba{batch}/{name}": planted for batch in (4, 6) for name in WITHIN}
    later = {f"ba8/{name}": planted for name in WITHIN}
    place = fill(str(tmp_path / "checkpoints"), {**files, **beside, **within, **later})
    again = resumed(place, tmp_path / "cache")
    assert again.first == 6
    assert_same(again, whole)
    assert not marker.exists()


@pytest.mark.parametrize("name", OURS)
def test_in_the_place_of_one_of_our_files(
    name: str,
    planted: bytes,
    marker: Path,
    files: Files,
    whole: Outcome,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):
    place = fill(str(tmp_path / "checkpoints"), {**files, f"ba6/{name}": planted})
    again = resumed(place, tmp_path / "cache")
    assert name in warnings_of(caplog.records)
    assert again.first == 4
    assert_same(again, whole)
    assert not marker.exists()


@pytest.mark.parametrize("name", OURS[:2])
def test_with_a_manifest_that_agrees(
    name: str, planted: bytes, marker: Path, files: Files, tmp_path: Path
):
    """Whoever can write the folder can write a fitting manifest too."""
    forged = forge(files, lambda entries: {**entries, name: entry(planted)})
    place = fill(str(tmp_path / "checkpoints"), {**forged, f"ba6/{name}": planted})
    copy = open_newest(place, tmp_path / "cache")
    assert copy is not None
    assert copy.manifest.batch == 6
    with pytest.raises(CheckpointError, match="it can't be read"):
        run(8, Resume(copy, same_run=True))
    assert not marker.exists()


def test_alone_they_are_refused(planted: bytes, marker: Path, tmp_path: Path):
    """Nor does the run start from scratch as if nothing were there."""
    for name in (*BESIDE, *(f"ba4/{name}" for name in (*WITHIN, *OURS))):
        place = fill(str(tmp_path / name.replace("/", "+")), {name: planted})
        telling = name in ("latest", "ba4/manifest.json")
        if telling or name.endswith((".pt", ".pt.symlink", ".distcp")):
            with pytest.raises(CheckpointError, match=r"holds .*name another save_folder"):
                open_newest(place, tmp_path / "cache")
        else:  # hidden, or half an upload
            assert open_newest(place, tmp_path / "cache") is None
        with pytest.raises(CheckpointError):
            open_checkpoint(place, tmp_path / "cache")
    assert not marker.exists()


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "sub/../../escaped", "..", ""])
def test_a_manifest_reaches_no_other_folder(
    name: str, files: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Fetched from a store, a file of such a name would be written anywhere on this machine."""
    forged = forge(files, lambda entries: {**entries, name: entry(b"1")})
    place = fill(str(tmp_path / "checkpoints"), forged)
    copy = open_newest(place, tmp_path / "cache")
    assert copy is not None
    assert copy.manifest.batch == 4
    assert f"manifest.json names {name!r}, which is no file" in warnings_of(caplog.records)


def test_an_endlessly_nested_manifest_is_a_damaged_one(files: Files, tmp_path: Path):
    nested = b"[" * (sys.getrecursionlimit() * 100)
    place = fill(str(tmp_path / "checkpoints"), {**files, "ba6/manifest.json": nested})
    copy = open_newest(place, tmp_path / "cache")
    assert copy is not None
    assert copy.manifest.batch == 4


def test_state_that_names_types_of_objects_is_refused(files: Files, tmp_path: Path):
    """An array of objects would be made of addresses."""
    state = json.loads(files["ba6/state.json"])
    name = next(iter(state["shapes"]))
    state["state"]["callbacks"] = [["Evil", {"~": "array", "v": ["|O", [1], name]}]]
    content = json.dumps(state).encode()
    forged = forge(files, lambda entries: {**entries, "state.json": entry(content)})
    place = fill(str(tmp_path / "checkpoints"), {**forged, "ba6/state.json": content})
    copy = open_newest(place, tmp_path / "cache")
    assert copy is not None
    with pytest.raises(CheckpointError, match="damaged"):
        run(8, Resume(copy, same_run=True))


def entry(content: bytes) -> FileEntry:
    return FileEntry(len(content), hashlib.sha256(content).hexdigest())


def forge(files: Files, change: Callable[[dict[str, FileEntry]], dict[str, FileEntry]]) -> Files:
    """The newest checkpoint with another manifest, which is valid in itself."""
    manifest = Manifest.from_json(files["ba6/manifest.json"])
    told = replace(manifest, files=change(manifest.files)).to_json()
    return {**files, "ba6/manifest.json": told.encode()}
