# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are not what was saved: the one before is used aloud, or the run refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from bad_stores import Files
from faulty_store import PART, Outcome, assert_same, fill, resumed, run, warnings_of

from ahpa_scale.checkpoint.errors import CheckpointError
from ahpa_scale.checkpoint.local_copy import open_newest
from ahpa_scale.checkpoint.resume import Resume
from ahpa_scale.checkpoint.saver import Saver

RANK, STATE, MANIFEST = "rank00000.safetensors", "state.json", "manifest.json"


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(position: float) -> Callable[[bytes], bytes]:
    """One bit, at so much of the length."""

    def flip(content: bytes) -> bytes:
        at = round(position * (len(content) - 1))
        return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]

    return flip


def empty(content: bytes) -> bytes:
    return b""


def replaced(name: str, change: Callable[[bytes], bytes]) -> Callable[[Files], Files]:
    return lambda files: {**files, f"ba6/{name}": change(files[f"ba6/{name}"])}


def missing(name: str) -> Callable[[Files], Files]:
    return lambda files: {key: value for key, value in files.items() if key != f"ba6/{name}"}


def exchanged(*names: str) -> Callable[[Files], Files]:
    """Files of the checkpoint before in the place of the newest one's."""
    return lambda files: {**files, **{f"ba6/{name}": files[f"ba4/{name}"] for name in names}}


#: What happens to the newest checkpoint, and what the warning must name.
DAMAGES = {
    **{f"{name} truncated": (replaced(name, truncated), name) for name in (RANK, STATE, MANIFEST)},
    **{f"{name} empty": (replaced(name, empty), name) for name in (RANK, STATE, MANIFEST)},
    **{
        f"{name} flipped at {position}": (replaced(name, flipped(position)), name)
        for name in (RANK, STATE, MANIFEST)
        for position in (0, 0.02, 0.5, 1)
        # A manifest ends with a line break, which says nothing.
        if (name, position) != (MANIFEST, 1)
    },
    **{f"{name} missing": (missing(name), name) for name in (RANK, STATE, MANIFEST)},
    **{f"{name} exchanged": (exchanged(name), name) for name in (RANK, STATE, MANIFEST)},
    "all exchanged": (exchanged(RANK, STATE, MANIFEST), MANIFEST),
}


#: Those that reach the loader by another way from a store.
IN_STORE = (f"{RANK} flipped at 0.5", f"{STATE} truncated", f"{RANK} missing", "all exchanged")


@pytest.mark.parametrize(
    ("damage", "place"),
    [*((one, "local") for one in DAMAGES), *((one, "s3") for one in IN_STORE)],
    indirect=["place"],
)
def test_a_damaged_newest_checkpoint_is_stepped_over(
    damage: str,
    place: str,
    files: Files,
    whole: Outcome,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):
    change, named = DAMAGES[damage]
    changed = change(files)
    assert changed != files
    fill(place, changed)
    again = resumed(place, tmp_path / "cache")
    told = warnings_of(caplog.records)
    assert f"{place}/ba6" in told
    assert named in told
    assert again.first == 4
    assert_same(again, whole)


def test_every_checkpoint_damaged_is_an_error(
    place: str, files: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    broken = {
        name: flipped(0.5)(content) if name.endswith(RANK) else content
        for name, content in files.items()
    }
    fill(place, broken)
    with pytest.raises(CheckpointError, match=r"3 checkpoint\(s\), and none can be used"):
        open_newest(place, tmp_path / "cache")
    assert warnings_of(caplog.records).count(f"{RANK} isn't what was saved") == 3


def test_every_manifest_missing_is_an_error(place: str, files: Files, tmp_path: Path):
    """Half uploads alone are none, but ``latest`` says that one of them was whole."""
    fill(place, {name: value for name, value in files.items() if not name.endswith(MANIFEST)})
    with pytest.raises(CheckpointError, match="'latest', so a run has saved there"):
        open_newest(place, tmp_path / "cache")


def test_nothing_at_all_is_a_start_from_scratch(place: str, tmp_path: Path):
    assert open_newest(place, tmp_path / "cache") is None


def test_half_a_first_upload_is_a_start_from_scratch_aloud(
    place: str, files: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    fill(place, {f"ba2/{RANK}": files[f"ba2/{RANK}"]})
    assert open_newest(place, tmp_path / "cache") is None
    assert f"{place}/ba2 is half an upload ({MANIFEST} is missing)" in warnings_of(caplog.records)


def test_files_of_an_earlier_attempt_on_more_ranks_are_not_read(
    place: str, files: Files, whole: Outcome, tmp_path: Path
):
    """Sorted behind the true file, it would win over it."""
    fill(place, {**files, "ba6/rank00001.safetensors": files[f"ba2/{RANK}"]})
    again = resumed(place, tmp_path / "cache")
    assert again.first == PART
    assert_same(again, whole)


def test_saving_goes_on_over_a_damaged_checkpoint(
    place: str, files: Files, whole: Outcome, tmp_path: Path
):
    """The run that stepped back saves the same batch again."""
    fill(place, DAMAGES[f"{RANK} truncated"][0](files))
    copy = open_newest(place, tmp_path / "cache")
    assert copy is not None
    again = run(PART, Resume(copy, same_run=True), Saver(place, "2ba"))
    assert again.first == 4
    last = resumed(place, tmp_path / "other")
    assert last.first == PART
    assert_same(last, whole)
