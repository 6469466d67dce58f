# SPDX-License-Identifier: Apache-2.0
"""Folders that replace others, killed at any moment, and folders that are mount points."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoint_runs import RANK_0
from job import ROOT

from ahpa_scale import storage
from ahpa_scale.data.card import read_card
from ahpa_scale.data.prepare import prepare
from ahpa_scale.disk_errors import mendable
from ahpa_scale.storage import disk

#: Writes ever newer versions of a folder: twenty files that all hold the version's number.
WRITER = """
import itertools, sys
from pathlib import Path
from ahpa_scale import storage
first = int(sys.argv[2])
for version in itertools.count(first):
    with storage.atomic_folder(sys.argv[1], replace=True, marker="card") as room:
        for name in ["card", *range(19)]:
            (room / str(name)).write_text(str(version))
    print(version, flush=True)
"""


#: Ends like a killed process at the move of this number: two take the old away, one comes between,
#: and two bring the new.
CUT_OFF = """
import os, sys
from ahpa_scale import storage
left, rename = int(sys.argv[2]), os.rename
def cut_off(source, target):
    global left
    if left == 0:
        os._exit(9)
    left -= 1
    rename(source, target)
with storage.atomic_folder(sys.argv[1], replace=True, marker="card") as room:
    for name in ("card", "of-the-new"):
        (room / name).write_text("new")
    os.rename = cut_off
os._exit(9)
"""


def versions(folder: Path) -> set[str]:
    """What the files hold, hidden ones left out."""
    names = [name for name in os.listdir(folder) if not name.startswith(".")]
    assert len(names) == 20
    return {(folder / name).read_text() for name in names}


def writer(folder: Path, first: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(folder), str(first)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_whenever_a_writer_is_killed_the_old_or_the_new_is_there_whole(tmp_path: Path):
    folder, latest = tmp_path / "out", 0
    for turn in range(8):
        process = writer(folder, latest + 1)
        assert process.stdout is not None
        latest = int(process.stdout.readline())
        time.sleep(0.003 * turn)
        process.kill()
        rest = process.communicate()[0].split()
        latest = int(rest[-1]) if rest else latest
        (seen,) = versions(folder)
        assert int(seen) in (latest, latest + 1)
        latest = int(seen)


def test_readers_meet_a_folder_at_every_moment(tmp_path: Path):
    folder = tmp_path / "out"
    process = writer(folder, 1)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        for _ in range(20_000):
            assert folder.exists()
        assert int(process.stdout.readline()) >= 2
    finally:
        process.kill()
        process.communicate()


def test_a_disk_that_cannot_exchange_gives_the_old_folder_back(tmp_path: Path, monkeypatch):
    """As NFS: killed between the two renames, neither name is there until the next call."""
    folder = tmp_path / "out"
    with storage.atomic_folder(folder) as room:
        (room / "a").write_text("old")

    def cannot(one: Path, other: Path) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr("ahpa_scale.storage.folders.exchange", cannot)
    with storage.atomic_folder(folder, replace=True) as room:
        (room / "a").write_text("new")
    assert (folder / "a").read_text() == "new"
    left = tmp_path / ".out.partial-killed"
    left.mkdir()
    (left / "lock").touch()
    folder.rename(left / "old")
    with pytest.raises(FileExistsError), storage.atomic_folder(folder):
        pass
    assert (folder / "a").read_text() == "new"
    assert os.listdir(tmp_path) == ["out"]


def test_a_link_to_a_folder_stays_one(tmp_path: Path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk")
    with storage.atomic_folder(tmp_path / "out") as room:
        (room / "a").write_text("1")
    assert (tmp_path / "out").is_symlink()
    assert os.listdir(tmp_path / "disk") == ["a"]


@pytest.fixture(params=["tmpfs", "bind"])
def mounted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """An empty folder that is a mount point: of another disk, and of another folder of its own."""
    folder, other = tmp_path / "mounted", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    words = ["-t", "tmpfs", "tmpfs"] if request.param == "tmpfs" else ["--bind", str(other)]
    done = subprocess.run(["mount", *words, str(folder)], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"nothing can be mounted on this machine: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_told_with_the_name_of_what_was_written(tmp_path: Path):
    folder = tmp_path / "small"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"nothing can be mounted on this machine: {done.stderr.strip()}")
    try:
        with pytest.raises(OSError, match="No space left") as caught:
            storage.write_bytes(folder / "map.json", bytes(1 << 20))
        told = mendable(caught.value)
        assert os.listdir(folder) == []
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
    assert told == f"{folder}/map.json: No space left on device"


def test_a_mount_point_is_filled_whole_its_marker_last(mounted: Path):
    assert disk.is_mount_point(mounted)
    (mounted / "lost+found").mkdir()
    process = writer(mounted, 1)
    assert process.stdout is not None
    for _ in range(3):
        assert process.stdout.readline()
    process.kill()
    process.communicate()
    if (mounted / "card").exists():
        (mounted / "lost+found").rmdir()
        assert len(versions(mounted)) == 1
    with storage.atomic_folder(mounted, replace=True, marker="card") as room:
        (room / "card").write_text("last")
    left = set(os.listdir(mounted)) - {"lost+found"}
    assert left == {"card"}
    with pytest.raises(FileExistsError), storage.atomic_folder(mounted):
        pass


@pytest.mark.parametrize("ending", ["os._exit(9)", "sys.exit(9)"])
@pytest.mark.parametrize("moves", range(6))
def test_a_move_into_a_mount_point_that_is_cut_off_is_ended_by_the_next_call(
    mounted: Path, moves: int, ending: str
):
    with storage.atomic_folder(mounted, marker="card") as room:
        for name in ("card", "of-the-old"):
            (room / name).write_text("old")
    script = CUT_OFF.replace("os._exit(9)", ending)
    done = subprocess.run([sys.executable, "-c", script, str(mounted), str(moves)], cwd=ROOT)
    assert done.returncode == 9
    with pytest.raises(FileExistsError), storage.atomic_folder(mounted, marker="card"):
        pass
    whole = {path.name: path.read_text() for path in mounted.iterdir()}
    assert whole == {"card": "new", "of-the-new": "new"}


def test_commands_fill_a_mount_point(mounted: Path, folder: Path, cli, vae_path: str):
    code, _, told = cli("pull", folder, mounted)
    assert (code, told) == (0, "")
    assert RANK_0 in os.listdir(mounted)
    assert cli("verify", mounted)[0] == 0
    code, _, told = cli("pull", folder, mounted)
    assert code == 2
    assert "exists already" in told
    for path in mounted.iterdir():
        path.unlink()
    options = {"vae_path": vae_path, "size": 16, "num_samples": 8, "progress": False}
    for overwrite in (False, True):
        prepare("demo", str(mounted), overwrite=overwrite, **options)
        assert read_card(mounted).num_samples == 8
    assert not [name for name in os.listdir(mounted) if name.startswith(".")]


def test_a_file_that_is_a_mount_point_is_written_over(tmp_path: Path):
    for name in ("file", "other"):
        (tmp_path / name).write_text("old")
    words = ["mount", "--bind", str(tmp_path / "other"), str(tmp_path / "file")]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"nothing can be mounted on this machine: {done.stderr.strip()}")
    try:
        storage.write_text(tmp_path / "file", "new")
        assert (tmp_path / "other").read_text() == "new"
        (tmp_path / "more").write_text("newer")
        storage.put_file(tmp_path / "more", tmp_path / "file")
        assert (tmp_path / "other").read_text() == "newer"
    finally:
        subprocess.run(["umount", str(tmp_path / "file")], check=True)
    assert sorted(os.listdir(tmp_path)) == ["file", "other"]
