# SPDX-License-Identifier: Apache-2.0
"""The benchmarks run, on a model small enough to mean nothing."""

from __future__ import annotations

import re

import pytest

from benchmarks import alignment_cost, checkpoint_stall, level_codec, loop_overhead, prepare

KEYS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_DEFAULT_REGION",
    "AWS_EC2_METADATA_DISABLED",
)


def test_every_alignment_is_timed_against_none(capsys: pytest.CaptureFixture[str]):
    words = "--model tiny/2 --input-size 8 --batch-size 2 --channels 8 --rounds 2 --head linear"
    alignment_cost.main([*words.split(), "--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()
    rows = {line[:28].strip(): line[28:].split() for line in lines[3:]}
    assert list(rows) == list(alignment_cost.VARIANTS)
    assert rows["none"][0] == "1.000"
    assert all(float(row[0]) > 0 for row in rows.values())


def test_every_codec_is_measured_against_mean_pooling(capsys: pytest.CaptureFixture[str]):
    level_codec.main(["--pictures", "40", "--size", "32"])
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if re.match(r"(pooled|detail|residual) ", line)]
    assert [row[:3] for row in (rows[0], rows[-1])] == [
        ["pooled", "all", "float16"],
        ["pooled", "64", "int8"],
    ]
    ratios = [line for line in lines if re.match(r"residual, 64, int8", line)]
    assert len(ratios) == 2  # over pooling as it was, and over pooling with PCA and int8
    assert all(float(ratio) > 5 for ratio in ratios[0].split()[3:])


def test_preparing_is_measured_against_its_stages(capfd: pytest.CaptureFixture[str]):
    prepare.main(["--pictures", "70"])
    printed = capfd.readouterr().out
    ratios = re.findall(r"^(prepare|a dear encoder|peak memory)\b.*: ratio (\S+)", printed, re.M)
    assert [name for name, _ in ratios] == ["prepare", "a dear encoder", "peak memory"]
    assert all(float(ratio) > 0 for _, ratio in ratios)


@pytest.mark.parametrize("align", [[], ["--align"]], ids=["plain", "aligned"])
def test_both_loops_do_the_same_work_and_are_timed(
    align: list[str], capsys: pytest.CaptureFixture[str]
):
    """The benchmark itself compares the weights at the end."""
    words = "--model tiny/2 --input-size 8 --batch-size 4 --microbatch 2 --rounds 3 --device cpu"
    loop_overhead.main([*words.split(), *align])
    ratios = re.findall(r"by (clock|processor): ratio (\S+),", capsys.readouterr().out)
    assert [clock for clock, _ in ratios] == ["clock", "processor"]
    assert all(float(ratio) > 0 for _, ratio in ratios)


def test_loops_that_do_different_work_are_not_compared(monkeypatch: pytest.MonkeyPatch):
    words = "--model tiny/2 --input-size 8 --batch-size 4 --microbatch 4 --rounds 2 --device cpu"
    monkeypatch.setattr(loop_overhead, "clip_groups", lambda *_: None)
    with pytest.raises(ValueError, match="did not do the same work"):
        loop_overhead.main(words.split())


def test_a_save_is_timed_against_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name in (*KEYS, "S3_ENDPOINT_URL"):  # which the benchmark sets
        monkeypatch.setenv(name, "")
    words = "--rounds 1 --batches 6 --width 256 --layers 2 --wait 50 --put-rate 0.5"
    checkpoint_stall.main(words.split())
    *_, local, store = capsys.readouterr().out.splitlines()
    for kind, line in (("local", local), ("store", store)):
        name, *columns, verdict = (cell.strip() for cell in line.strip("|").split("|"))
        assert name == kind
        assert verdict in ("kept", "MISSED")
        _, held, copy, _ = (float(column.split()[0]) for column in columns)
        assert held > 0, "the saver was never entered"
        assert copy > 0
