# SPDX-License-Identifier: Apache-2.0
"""What a training writes on its board, and how it is served."""

from __future__ import annotations

import time

import pytest
import torch
from conftest import LEVELS, ToyLatents
from scrape import free_port, scrape
from torch.utils.data import DataLoader

from ahpa_scale.algorithms import AHPA
from ahpa_scale.callbacks import Prometheus
from ahpa_scale.callbacks.speed import Speed
from ahpa_scale.exporter import Board, Newest, Saved, serving
from ahpa_scale.method import HeadSettings
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
    board.newest = Newest(losses={"total": float("nan")})
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


def test_speed_is_unknown_before_training():
    speed = Speed()
    assert speed.images_per_second is None
    assert speed.seconds_for(3) is None


def test_mfu_is_speed_times_flops_over_the_peak(make_generator, make_trainer):
    board, model = Board(), make_generator()
    flops = training_flops(model.dit)
    make_trainer(model, loggers=Prometheus(board, flops, peak=2e9), max_duration="6ba").fit()
    speed = board.newest.images_per_second
    assert speed is not None
    assert board.newest.mfu == pytest.approx(speed * flops / 2e9)


def test_numbers_of_two_batches_are_never_seen_side_by_side(make_generator, make_trainer):
    """The alignment's loss is logged after the others: whoever reads between them sees neither."""
    board = Board()

    class Reads(Prometheus):
        def log_metrics(self, metrics, step=None):
            super().log_metrics(metrics, step)
            seen.append(board.newest)

    seen: list[Newest] = []
    trainer = make_trainer(
        make_generator(),
        algorithms=[AHPA(LEVELS, head=HeadSettings(width=32), weight=1.0, loss_interval="1ba")],
        loggers=Reads(board, 1),
        max_duration="3ba",
    )
    trainer.fit()
    seen.append(board.newest)
    assert {one.batch for one in seen if one.batch is not None} == {0, 1, 2, 3}
    for one in seen:
        losses = one.losses
        assert one.images == (None if one.batch is None else 16 * one.batch)
        if one.batch:
            whole = losses["flow"] + losses["alignment"]
            assert losses["total"] == pytest.approx(whole, rel=1e-5)
        else:
            assert losses == {}


def test_what_the_guard_finds_is_counted_and_what_is_logged_is_sorted():
    board = Board()
    seen = Prometheus(board, 1)
    seen.log_metrics({"loss/train/total": 1.0, "time/batch": 3, "alignment/strength": 0.5})
    for _ in range(2):
        seen.log_metrics({"guard/nonfinite": 1.0, "a/tensor": torch.ones(()), "a/word": "x"})
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
    assert board.newest[:3] == (4, 64, 4)
