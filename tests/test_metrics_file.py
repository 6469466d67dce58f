# SPDX-License-Identifier: Apache-2.0
"""Rows of metrics.jsonl: what is in them, and over resumes and kills."""

from __future__ import annotations

import math

import pytest
import torch
from composer import Callback
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_trainer import SUMMARY, ToyGenerator, read_rows, toy_loader, toy_trainer

from ahpa_scale.algorithms.grad_clip import GradClip
from ahpa_scale.callbacks import MetricsFile
from ahpa_scale.callbacks.metrics_file import drop_rows_after, encode_row


def test_one_row_per_batch_with_the_batchs_own_values(tmp_path):
    seen = []

    class Losses(Callback):
        def after_loss(self, state, logger):
            seen.append({k: float(v) for k, v in state.loss.items()})

    model = ToyGenerator()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    toy_trainer(
        "7ba",
        model=model,
        optimizers=optimizer,
        schedulers=torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step),
        step_schedulers_every_batch=True,
        algorithms=GradClip(1.0, "3ba"),
        callbacks=Losses(),
        loggers=MetricsFile(tmp_path),
    ).fit()
    rows = read_rows(tmp_path)
    assert [row["batch"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert [row["num_images"] for row in rows] == [4, 8, 12, 16, 20, 24, 28]
    assert [row["epoch"] for row in rows] == [0] * 6 + [1]
    assert [row["lr"] for row in rows] == [pytest.approx(0.1 * 0.5**i) for i in range(7)]
    assert all(a["seconds"] <= b["seconds"] for a, b in zip(rows, rows[1:], strict=False))
    for row, losses in zip(rows, seen, strict=True):
        for name, value in losses.items():
            assert row[f"loss/train/{name}"] == pytest.approx(value, rel=1e-6)
    assert ["grad_norm/backbone" in row for row in rows] == [False, False, True] * 2 + [False]
    assert not any(key.startswith("time/") for row in rows for key in row)


def test_alignment_is_null_without_attachments(tmp_path):
    toy_trainer("1ba", model=ToyGenerator(aligned=False), loggers=MetricsFile(tmp_path)).fit()
    (row,) = read_rows(tmp_path)
    assert row["loss/train/alignment"] is None
    assert row["loss/train/flow"] == row["loss/train/total"] > 0


@pytest.mark.parametrize(
    ("interval", "batches"), [("2ba", [2, 4, 6]), ("12sp", [3, 6]), ("1ep", [6])]
)
def test_rows_come_at_the_interval_with_the_newest_values(tmp_path, interval, batches):
    loggers = MetricsFile(tmp_path, interval)
    toy_trainer("7ba", algorithms=GradClip(1.0, "1ba"), loggers=loggers).fit()
    rows = read_rows(tmp_path)
    assert [row["batch"] for row in rows] == batches
    assert all(row["loss/train/total"] > 0 and row["grad_norm/backbone"] > 0 for row in rows)


def test_resume_leaves_one_row_per_batch(tmp_path):
    whole, parts, saved = (tmp_path / name for name in ("whole", "parts", "saved"))
    toy_trainer("6ba", loggers=MetricsFile(whole)).fit()
    toy_trainer(
        "5ba", loggers=MetricsFile(parts), save_folder=str(saved), save_interval="3ba"
    ).fit()
    with (parts / "metrics.jsonl").open("ab") as file:
        file.write(b'{"batch": 6, "loss/tra')  # what a kill may leave
    checkpoint = str(saved / "ep0-ba3-rank0.pt")
    toy_trainer("6ba", loggers=MetricsFile(parts), load_path=checkpoint).fit()
    strip = {"seconds"}
    rows = [
        [{k: v for k, v in r.items() if k not in strip} for r in read_rows(f)]
        for f in (whole, parts)
    ]
    assert rows[0] == rows[1]
    assert [row["batch"] for row in rows[1]] == [1, 2, 3, 4, 5, 6]


def test_rows_are_readable_while_training(tmp_path):
    counts = []

    class Reader(Callback):
        def batch_start(self, state, logger):
            counts.append(len(read_rows(tmp_path)))

    toy_trainer("3ba", callbacks=Reader(), loggers=MetricsFile(tmp_path)).fit()
    assert counts == [0, 1, 2]


def test_nan_becomes_null_and_is_named(tmp_path):
    class Spoil(Callback):
        def batch_start(self, state, logger):
            logger.log_metrics({"odd": math.inf, "note": "fine", "many": torch.ones(3)})
            state.model.dit.mix.bias.data.fill_(math.nan)

    toy_trainer("1ba", callbacks=Spoil(), loggers=MetricsFile(tmp_path)).fit()
    (row,) = read_rows(tmp_path)
    assert row["loss/train/total"] is None
    assert row["odd"] is None
    assert row["note"] == "fine"
    assert "many" not in row
    assert {"loss/train/total", "odd"} <= set(row["nonfinite"])


def test_router_records_join_rows_at_their_interval(tmp_path):
    model = ToyGenerator()
    model.attachments["alignment"].last = SUMMARY
    toy_trainer("5ba", model=model, loggers=MetricsFile(tmp_path, router_interval="2ba")).fit()
    rows = read_rows(tmp_path)
    assert [row["batch"] for row in rows if "router" in row] == [2, 4]
    assert rows[1]["router"] == SUMMARY


def test_one_line_says_where_evaluations_go(tmp_path, caplog):
    toy_trainer(
        "4ba", loggers=MetricsFile(tmp_path), eval_dataloader=toy_loader(1), eval_interval="2ba"
    ).fit()
    (line,) = [line for line in caplog.messages if "eval_dataloader" in line]
    assert line.startswith(f"{tmp_path}/metrics.jsonl ")
    assert "ahpa-scale evaluate" in line
    assert [row["batch"] for row in read_rows(tmp_path)] == [1, 2, 3, 4]
    assert not (tmp_path / "evaluation.jsonl").exists()


@settings(max_examples=40)
@given(rows=st.integers(0, 6), batch=st.integers(0, 7), torn=st.integers(0, 30))
def test_dropping_keeps_whole_rows_until_the_batch(tmp_path_factory, rows, batch, torn):
    path = tmp_path_factory.mktemp("rows") / "metrics.jsonl"
    last = encode_row({"batch": rows + 1, "x": "y" * 20})
    whole = [encode_row({"batch": i + 1, "x": 0.5}) for i in range(rows)]
    path.write_bytes(b"".join(whole) + last[: min(torn, len(last) - 1)])
    drop_rows_after(path, batch)
    assert path.read_bytes() == b"".join(whole[:batch])
    assert [file.name for file in path.parent.iterdir()] == ["metrics.jsonl"]
