# SPDX-License-Identifier: Apache-2.0
"""The residual's trend, and the one sum over ranks that ends a batch."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import leave

from ahpa_scale.method import Plateau, ResidualTrend
from ahpa_scale.method.balance import GradientBalance
from ahpa_scale.method.rank_sums import commit_all
from ahpa_scale.method.statistics import BinnedMean
from benchmarks.ranks import start_ranks


def run(trend: ResidualTrend, residuals: list[float]) -> None:
    for residual in residuals:
        trend.observe(torch.tensor(residual), pictures=4)
        trend.commit()


def test_averages_are_corrected_for_their_start():
    trend = ResidualTrend(Plateau(fast=0.5, slow=0.9))
    assert trend.read() == (0.0, 0.0)
    run(trend, [2.0])
    assert trend.read() == pytest.approx((2.0, 2.0))
    run(trend, [1.0])
    assert trend.read() == pytest.approx(((0.5 * 2 + 1) / 1.5, (0.9 * 2 + 1) / 1.9))


def test_a_plateau_is_seen_after_the_warm_up_and_a_fall_is_none():
    plateau = Plateau(fast=0.8, slow=0.99, improvement=0.02)
    assert plateau.warm_up == pytest.approx(10)
    falling, flat = ResidualTrend(plateau), ResidualTrend(plateau)
    seen = []
    for number in range(30):
        run(falling, [0.97**number])
        run(flat, [1.0])
        assert not falling.reached()
        seen.append(flat.reached())
    assert seen == [False] * 9 + [True] * 21 or seen == [False] * 10 + [True] * 20
    run(falling, [0.97**30] * 100)
    assert not falling.reached(), "the slow average still remembers the fall"
    run(falling, [0.97**30] * 500)
    assert falling.reached()


def test_the_usual_rule_is_the_published_one():
    assert Plateau() == Plateau(fast=0.999, slow=0.99995, improvement=0.02)
    assert Plateau().warm_up == pytest.approx(2000)


def test_a_trend_goes_on_from_its_state_exactly():
    straight, first = ResidualTrend(), ResidualTrend()
    residuals = torch.rand(20).tolist()
    run(straight, residuals)
    run(first, residuals[:7])
    second = ResidualTrend()
    second.load(first.state())
    run(second, residuals[7:])
    assert second.state() == straight.state()
    assert second.read() == straight.read()


def test_micro_batches_count_by_their_pictures():
    whole, parts = ResidualTrend(), ResidualTrend()
    whole.observe(torch.tensor(2.5), pictures=4)
    for residual, pictures in ((1.0, 1), (3.0, 3)):
        parts.observe(torch.tensor(residual), pictures)
    whole.commit()
    parts.commit()
    assert parts.read() == pytest.approx(whole.read())


def _observed(part: slice) -> tuple[BinnedMean, GradientBalance, ResidualTrend]:
    generator = torch.Generator().manual_seed(0)
    t_B, value_BG = torch.rand(8, generator=generator), torch.rand(8, 2, generator=generator)
    flow_BND, own_BND = torch.rand(2, 8, 4, 3, generator=generator)
    mean, balance, trend = BinnedMean(2, 3), GradientBalance(0.5), ResidualTrend()
    mean.observe(t_B[part], value_BG[part])
    balance.observe(flow_BND[part], own_BND[part], torch.ones(()))
    trend.observe(value_BG[part].mean(), pictures=len(t_B[part]))
    commit_all([mean, balance, trend])
    return mean, balance, trend


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=timedelta(minutes=10),
    )
    mean, balance, trend = _observed(slice(rank * 4, rank * 4 + 4))
    if rank == 0:
        state = {**mean.state_dict(), **balance.state_dict()}
        torch.save((state, trend.state()), Path(folder) / "state.pt")
    leave()


def test_two_ranks_learn_what_one_does(tmp_path):
    start_ranks(_rank, (str(tmp_path),))
    state, trend_state = torch.load(tmp_path / "state.pt", weights_only=True)
    mean, balance, trend = _observed(slice(0, 8))
    torch.testing.assert_close(state, {**mean.state_dict(), **balance.state_dict()})
    assert trend_state == pytest.approx(trend.state())
