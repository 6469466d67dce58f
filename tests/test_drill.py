# SPDX-License-Identifier: Apache-2.0
"""The fault drill's list of cases, and how it reads a job's first complaint. It runs by itself."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
from job import ROOT

from tools.drill.jobs import Job
from tools.drill.results import Result, write
from tools.drill.signals import SPAN, TARGETS, blows


def names(*words: str) -> list[str]:
    command = [sys.executable, "-m", "tools.drill", "--list", *words]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()


def test_it_has_twenty_errors_with_and_without_workers_thirty_signals_and_ten_outages():
    found = names()
    assert len(found) == len(set(found))
    assert all(
        sum(n.startswith("error/") and n.endswith(f"/{w}") for n in found) >= 20 for w in (0, 8)
    )
    assert [sum(name.startswith(part) for name in found) for part in ("signal/", "outage/")] == [
        30,
        10,
    ]
    assert names("--only", "error/nan/*") == ["error/nan/0", "error/nan/8"]


def test_signals_follow_from_the_seed_and_reach_every_target_once_and_twice():
    assert blows(1) == blows(1) != blows(2)
    assert {(blow.target, len(blow.signals)) for blow in blows(0)} == {
        (target, count) for target in TARGETS for count in (1, 2)
    }
    assert all(0 <= blow.moments[0] <= SPAN for blow in blows(0))


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("one\nerror: run.yaml: no\n", "error: run.yaml: no"),
        ("Traceback (most recent call last):\n  x\na.b.SomeError: why\nerror: late\n",
         "a.b.SomeError: why"),
        ("ERROR:composer: Rank 1 crashed\n[rank1]: Traceback (most\n[rank1]: OSError: why\n",
         "OSError: why"),
        ("ERROR:composer: Rank 1 crashed\n", "ERROR:composer: Rank 1 crashed"),
        ("ValueError: quoted, without a traceback\n", ""),
    ],
)  # fmt: skip
def test_the_first_complaint_is_an_error_line_or_a_tracebacks_exception(tmp_path, log, line):
    (tmp_path / "log").write_text(log)
    assert Job(tmp_path, tmp_path, SimpleNamespace(), "mark").complaint() == line


def test_the_table_ends_with_the_seconds_from_an_error_to_its_line_and_to_the_end(tmp_path):
    results = {
        "error/a": Result(1, 4.0, "a", told=0.2),
        "error/b": Result(75, 40.0, "b", told=1.0),
        "error/c": Result(1, 6.0, "c", ["late"], told=0.6),
        "signal/d": Result(79, 90.0, "d"),
    }
    write(tmp_path / "drill.json", results, seed=0)
    *_, median, maximum = (tmp_path / "drill.md").read_text().splitlines()
    assert median == "| median of 3 | | | 0.6 | 6.0 | |"
    assert maximum == "| maximum of 3 | | | 1.0 | 40.0 | |"
