# SPDX-License-Identifier: Apache-2.0
"""One cell of a study from scratch, held against what is stored of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from small_study import content, write
from study_rows import run_row
from study_rows import write as write_rows

from experiments import reproduce as reproduction
from experiments.__main__ import main
from experiments.analysis import load_results
from experiments.reproduce import Comparison
from experiments.rows import ResultFile
from experiments.study import Cell


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> tuple[Path, Path]:
    """A study and the rows of its two runs."""
    folder = tmp_path_factory.mktemp("stored")
    path = write(folder, content(name="stored", variants={"none": {}}))
    words = [str(path), "--work", str(folder / "work"), "--results", str(folder / "results")]
    assert main(["run", *words, "--jobs", "2"]) == 0
    return path, folder / "results"


def again(stored: tuple[Path, Path], work: Path, cell: str = "demo/none/0") -> int:
    path, results = stored
    words = ["--work", str(work), "--results", str(results)]
    return main(["reproduce", str(path), cell, *words])


def refused(stored: tuple[Path, Path], work: Path, capsys, cell: str = "demo/none/0") -> str:
    """The one line that a mistake is told in."""
    with pytest.raises(SystemExit) as ended:
        again(stored, work, cell)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_cell_comes_out_as_it_is_stored_from_nothing(stored, tmp_path, capsys):
    before = (stored[1] / "stored.jsonl").read_bytes()
    assert again(stored, tmp_path / "new") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "reproduced"
    assert [line.split(":")[0] for line in lines[1:-1]] == ["step      2", "step      4"]
    for line in lines[1:-1]:
        here, there = line.split("; ")[0].split(": ")[1].split(", stored ")
        assert float(here) == pytest.approx(float(there), rel=1e-2)
        assert "; inside [" in line
    assert (stored[1] / "stored.jsonl").read_bytes() == before


def test_a_cell_that_comes_out_otherwise_is_told(stored, tmp_path, capsys, monkeypatch):
    # The first test has a whole run; this one is about its end alone.
    found = [Comparison(2, 5.0, 5.1, (4.8, 5.2)), Comparison(4, 3.0, 3.3, (2.8, 3.2))]
    monkeypatch.setattr(reproduction, "reproduce", lambda *_: found)
    assert again(stored, tmp_path / "new") == 1
    out = capsys.readouterr().out
    assert "step      2: 5.1, stored 5; inside [4.8, 5.2]" in out
    assert "step      4: 3.3, stored 3; OUTSIDE [2.8, 3.2]" in out
    assert out.endswith("NOT reproduced\n")


def test_the_interval_is_that_of_one_more_value(tmp_path):
    rows = [run_row("none", seed, 400, fd) for seed, fd in enumerate((1.0, 2.0, 3.0))]
    group = load_results([write_rows(tmp_path, rows)]).group("main", "demo")
    low, high = reproduction.one_more(group, Cell("demo", "none", 0), 400)
    # t(0.975, 2) = 4.3027, deviation 1, one more of three.
    assert (low + high) / 2 == pytest.approx(2.0)
    assert (high - low) / 2 == pytest.approx(4.3027 * (1 + 1 / 3) ** 0.5, rel=1e-4)


@pytest.mark.parametrize(
    ("cell", "problem"),
    [("demo/none/*", "names 2 runs, and one is wanted"), ("demo/nine/0", "demo/none/0")],
)
def test_what_names_no_single_run_is_refused(stored, tmp_path, capsys, cell, problem):
    assert problem in refused(stored, tmp_path / "new", capsys, cell)


def test_a_folder_in_use_is_refused(stored, tmp_path, capsys):
    (tmp_path / "old").touch()
    assert "is not empty" in refused(stored, tmp_path, capsys)


def test_a_variant_of_one_seed_states_no_interval(stored, tmp_path, capsys):
    path, results = stored
    folder = shutil.copytree(results, tmp_path / "results")
    rows = ResultFile(folder / "stored.jsonl").read()
    kept = [row for row in rows if row.get("seed") != 1]
    (folder / "stored.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    few = (path, folder)
    assert "one seed at step 2, no interval" in refused(few, tmp_path / "new", capsys)
    assert "nothing is stored of" in refused(few, tmp_path / "new", capsys, "demo/none/1")
