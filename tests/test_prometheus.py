# SPDX-License-Identifier: Apache-2.0
"""What a training writes on its board, and how it is served."""

from __future__ import annotations

import time

import pytest
import torch
from conftest import ToyLatents
from scrape import free_port, scrape
from torch.utils.data import DataLoader

from ahpa_scale.callbacks import Prometheus
from ahpa_scale.exporter import Board, Saved, serving
from ahpa_scale.models.flops import training_flops
from ahpa_scale.watch import Pulse


def test_a_wait_that_goes_on_counts_and_no_counter_falls():
    board = Board(begun=10.0)
    assert board.data_wait(11.0) == 0
    board.wait = (0.0, 11.0)
    assert board.data_wait(14.0) == 3
    board.wait = (3.5, None)
    assert board.data_wait(100.0) == 3.5
    assert board.loop_time(100.0) == 90
    board.ended = 50.0
    assert board.loop_time(100.0) == 40


def test_numbers_that_are_not_finite_and_odd_names_are_served():
    board = Board({"run": 'a "b"'}, saved=lambda: Saved(7, 1.5e9))
    board.losses["total"] = float("nan")
    board.logged['router/a"b/t0.50'] = float("inf")
    port = free_port()
    pulse = Pulse()
    pulse.dropped = 3
    with serving(port, board, pulse, None):
        found = scrape(port)
    assert found["ahpa_run_info", (("run", 'a "b"'),)] == 1
    assert found["ahpa_loss", (("part", "total"),)] != found["ahpa_loss", (("part", "total"),)]
    assert found["ahpa_logged", (("name", 'router/a"b/t0.50'),)] == float("inf")
    assert found["ahpa_checkpoint_batch", ()] == 7
    assert found["ahpa_checkpoint_timestamp_seconds", ()] == 1.5e9
    assert found["ahpa_watch_dropped_datagrams_total", ()] == 3


def test_mfu_is_speed_times_flops_over_the_peak(make_generator, make_trainer):
    board, model = Board(), make_generator()
    flops = training_flops(model.dit)
    make_trainer(model, loggers=Prometheus(board, flops, peak=2e9), max_duration="6ba").fit()
    assert board.images_per_second is not None
    assert board.mfu == pytest.approx(board.images_per_second * flops / 2e9)


def test_what_the_guard_finds_is_counted_and_what_is_logged_is_sorted():
    board = Board()
    seen = Prometheus(board, 1)
    for loss in (1.0, float("nan")):
        seen.log_metrics({"loss/train/total": loss, "time/batch": 3, "alignment/strength": 0.5})
    for _ in range(2):
        seen.log_metrics({"guard/nonfinite": 1.0, "a/tensor": torch.ones(()), "a/word": "x"})
    assert board.losses["total"] != board.losses["total"]
    assert board.nonfinite_batches == 2
    assert board.logged == {"alignment/strength": 0.5}


def test_the_loops_waits_are_those_of_its_loader(make_generator, make_trainer):
    class Slow(ToyLatents):
        def __getitem__(self, index):
            time.sleep(0.01)
            return super().__getitem__(index)

    board = Board()
    loader = DataLoader(Slow(32), batch_size=16)
    trainer = make_trainer(
        train_dataloader=loader, loggers=Prometheus(board, 1), max_duration="2ep"
    )
    trainer.fit()
    now = time.monotonic()
    # Four batches of sixteen pictures each.
    assert 0.64 <= board.data_wait(now) < board.loop_time(now)
    assert board.wait[1] is None
    assert (board.batch, board.images, board.planned_batches) == (4, 64, 4)
