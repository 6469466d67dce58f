# SPDX-License-Identifier: Apache-2.0
"""The benchmarks run, on a model small enough to mean nothing."""

from __future__ import annotations

import pytest

from benchmarks import alignment_cost


def test_every_alignment_is_timed_against_none(capsys: pytest.CaptureFixture[str]):
    words = "--model tiny/2 --input-size 8 --batch-size 2 --channels 8 --rounds 2 --head linear"
    alignment_cost.main([*words.split(), "--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()
    rows = {line[:28].strip(): line[28:].split() for line in lines[3:]}
    assert list(rows) == list(alignment_cost.VARIANTS)
    assert rows["none"][0] == "1.000"
    assert all(float(row[0]) > 0 for row in rows.values())
