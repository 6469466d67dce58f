# SPDX-License-Identifier: Apache-2.0
"""ZeRO's offloaded state in files on a disk: the same training, and less memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ahpa_scale.algorithms.zero import ZeroSettings
from ahpa_scale.algorithms.zero.files import MappedFiles, in_file
from benchmarks.ranks import Task, run_tasks

STEPS = 4
IN_MEMORY = [
    Task("zero2", "adamw", 0.05, STEPS, microbatches=2, offload="optimizer"),
    Task("zero3", "adamw", 0.05, STEPS, microbatches=2, offload="optimizer"),
    Task("zero3", "adamw", 0.05, STEPS, microbatches=2, offload="parameters"),
]


def name(number: int) -> str:
    return f"{IN_MEMORY[number].engine}-{IN_MEMORY[number].offload}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def results(folder: Path) -> Mapping[Task, dict[str, Any]]:
    """All of them on two ranks: in memory; in files; and in files, half of it after a resume."""
    files = [replace(task, offload_folder=str(folder / "state")) for task in IN_MEMORY]
    first = [
        replace(task, steps=STEPS // 2, save=str(folder / f"saved{number}"))
        for number, task in enumerate(files)
    ]
    rest = [
        replace(task, start=f"{folder}/saved{number}/ba{STEPS // 2}")
        for number, task in enumerate(files)
    ]
    tasks = [*IN_MEMORY, *files, *first, *rest]
    found = run_tasks(tasks, 2, folder / "runs")
    kinds = [found[n : n + len(IN_MEMORY)] for n in range(0, len(found), len(IN_MEMORY))]
    return dict(zip(("memory", "files", "first", "rest"), kinds, strict=True))


@pytest.mark.parametrize("number", range(len(IN_MEMORY)), ids=name)
@pytest.mark.parametrize("kind", ["files", "rest"])
def test_files_train_what_memory_trains(number, kind, results):
    one, two = results["memory"][number], results[kind][number]
    for key in ("weights", "average"):
        assert one[key].keys() == two[key].keys()
        for parameter, value in one[key].items():
            assert torch.equal(value, two[key][parameter]), (key, parameter)
    assert two["losses"] == one["losses"][-len(two["losses"]) :]


@pytest.mark.parametrize("number", range(len(IN_MEMORY)), ids=name)
def test_the_line_tells_what_lies_in_files(number, results):
    before, after = results["memory"][number], results["files"][number]
    assert "in files" not in before["line"]
    moved = before["memory"]["optimizer"] - after["memory"]["optimizer"]
    # What is left in memory are the numbers of steps.
    assert 0 <= after["memory"]["optimizer"] < 0.01 * before["memory"]["optimizer"]
    if IN_MEMORY[number].engine == "zero3":  # keeps them once, on a CPU
        assert after["memory"]["weights"] == 0
        moved += before["memory"]["weights"]
    else:
        assert after["memory"]["weights"] == before["memory"]["weights"]
    assert after["line"].endswith(f", and {moved / 1e6:.1f} MB in files")


def test_nothing_is_left_in_the_folder(results, folder):
    assert list((folder / "state").iterdir()) == []


def test_memory_is_given_back(tmp_path):
    """Measured by the kernel, in a process of its own."""
    script = (
        "import sys, torch\n"
        "from ahpa_scale.algorithms.zero.files import MappedFiles\n"
        "def anonymous():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(line.split()[1]) for line in lines if line.startswith('RssAnon'))\n"
        "files = MappedFiles(sys.argv[1])\n"
        "state = torch.arange(32_000_000, dtype=torch.float32)\n"
        "before = anonymous()\n"
        "files.move(state)\n"
        "assert before - anonymous() > 110_000, (before, anonymous())\n"
        "assert state[31_000_000] == 31_000_000 and state.sum() > 0\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=600)


def test_a_moved_tensor_is_the_same_tensor(tmp_path):
    weight = torch.nn.Parameter(torch.randn(3, 5))
    values, view = weight.detach().clone(), weight
    MappedFiles(str(tmp_path / "new" / "folder")).move(weight)
    assert in_file(weight)
    assert in_file(weight.detach().view(-1).narrow(0, 2, 3))
    assert not in_file(values)
    assert torch.equal(view, values)
    weight.data.add_(1)
    assert torch.equal(view, values + 1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no disk of one's own can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_too_small_is_told_before_training(small_disk, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    files = MappedFiles(str(small_disk))
    files.check_room(10_000)
    with pytest.raises(ValueError, match=r"has 1 MB free, and the node's ranks \(8\) need 2 MB"):
        files.check_room(20_000)


def test_a_disk_that_has_filled_up_is_an_error_and_no_signal(small_disk):
    tensor = torch.ones(1_000_000)
    with pytest.raises(OSError, match="No space left"):
        MappedFiles(str(small_disk)).move(tensor)
    assert tensor.sum() == 1_000_000
    assert os.listdir(small_disk) == []


def test_a_folder_that_is_none_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"offload_folder .*/file/state: Not a directory"):
        MappedFiles(str(tmp_path / "file" / "state"))
    with pytest.raises(ValueError, match="set offload as well"):
        ZeroSettings(2, offload_folder=str(tmp_path))
