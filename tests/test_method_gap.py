# SPDX-License-Identifier: Apache-2.0
"""The gap router: what counts as recovered, what weights follow from it, and that a router learns
them.

B batch, N tokens, C channels, G groups, T bins, L levels, D blocks.
"""

from __future__ import annotations

import pytest
import torch
from alignments import prior_alignment
from hypothesis import given, settings
from hypothesis import strategies as st

from ahpa_scale.method import DynamicRouter, GapMap, PriorAlignment, gap_weights, recoverability_gap
from ahpa_scale.method.gap import GAP_FLOOR, OnlineGap
from ahpa_scale.method.router import cross_entropy

T_B = torch.arange(8) / 8


@given(seed=st.integers(0, 1000), groups=st.integers(1, 5))
@settings(max_examples=40)
def test_gap_weights_are_a_distribution_that_falls_with_the_readout(seed: int, groups: int):
    r2_GT = torch.rand(groups, 6, generator=torch.Generator().manual_seed(seed))
    weight_GT = gap_weights(recoverability_gap(r2_GT, r2_GT.amax().expand_as(r2_GT)))
    torch.testing.assert_close(weight_GT.sum(0), torch.ones(6))
    assert (weight_GT > 0).all()
    order = r2_GT.argsort(dim=0)
    sorted_GT = weight_GT.gather(0, order)
    assert (sorted_GT.diff(dim=0) <= 1e-6).all()


def test_gap_weights_follow_the_formula():
    r2_GT = torch.tensor([[0.8, 0.0, 0.01], [0.4, 0.0, 0.0]])
    ceiling_GT = torch.tensor([[0.8, 0.8, 0.01], [0.8, 0.8, 0.0]])
    weight_GT = gap_weights(recoverability_gap(r2_GT, ceiling_GT))
    torch.testing.assert_close(weight_GT[:, 0], torch.tensor([0.02, 0.52]) / 0.54)
    torch.testing.assert_close(weight_GT[:, 1], torch.tensor([0.5, 0.5]))
    # A ceiling below its floor: nothing is lacking that anybody knows.
    torch.testing.assert_close(weight_GT[:, 2], torch.tensor([0.5, 0.5]))


MAP = GapMap(
    levels=("a", "b", "c"),
    blocks=(2, 4, 6),
    r2_LDT=torch.tensor(
        [
            [[0.9, 0.3], [0.9, 0.4], [0.9, 0.4]],
            [[0.4, 0.0], [0.6, 0.1], [0.8, 0.3]],
            [[0.2, 0.0], [0.4, 0.1], [0.4, 0.1]],
        ]
    ),
)


def test_a_map_weighs_groups_at_their_own_blocks():
    groups = {"fine": ("a",), "coarse": ("b", "c")}
    anywhere_GT = MAP.gap(groups, [2, 4])
    r2_GT = torch.tensor([[0.9, 0.3], [0.5, 0.1]])
    torch.testing.assert_close(anywhere_GT, recoverability_gap(r2_GT, torch.full((2, 2), 0.9)))
    assert anywhere_GT[0, 0] == GAP_FLOOR, "nothing is known better than the fine level there"


@pytest.mark.parametrize(
    ("groups", "taps", "message"),
    [
        ({"x": ("d",)}, [2], "the map has no level 'd'; it has a, b, c"),
        ({"x": ("a",)}, [5], "no block 5, which the group 'x' taps; the nearest is 4"),
    ],
)
def test_what_a_map_lacks_is_named(groups, taps, message: str):
    with pytest.raises(ValueError, match=message):
        MAP.gap(groups, taps)


def observe(gap: OnlineGap, pairs) -> torch.Tensor:
    predictions, targets = zip(*pairs, strict=True)
    gap.observe(T_B, predictions, targets)
    for part in (gap.scores, gap):
        part.commit()
    return gap.r2()


def test_the_squared_readout_is_one_minus_residual_over_variance():
    generator = torch.Generator().manual_seed(0)
    y_BNC = torch.randn(8, 400, 6, generator=generator) * 3 + 5
    p_BNC = y_BNC + torch.randn(8, 400, 6, generator=generator)
    r2_GT = observe(
        OnlineGap([6, 6, 6], 1, "smooth_l1"),
        [(p_BNC, y_BNC), (y_BNC, y_BNC), (torch.full_like(y_BNC, 5.0), y_BNC)],
    )
    variance = (y_BNC - y_BNC.mean((0, 1))).square().sum(-1).mean()
    expected = 1 - (p_BNC - y_BNC).square().sum(-1).mean() / variance
    torch.testing.assert_close(r2_GT[0, 0], expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(r2_GT[1:, 0], torch.tensor([1.0, 0.0]), rtol=0, atol=2e-3)


def test_the_cosines_readout_does_not_count_what_a_constant_gets_right():
    generator = torch.Generator().manual_seed(0)
    y_BNC = torch.randn(8, 400, 6, generator=generator) + 2
    unit_BNC = torch.nn.functional.normalize(y_BNC, dim=-1)
    constant_BNC = unit_BNC.mean((0, 1)).expand_as(y_BNC)
    half_BNC = unit_BNC + torch.randn(8, 400, 6, generator=generator) * 0.1
    r2_GT = observe(
        OnlineGap([6] * 4, 1, "cosine"),
        [(constant_BNC, y_BNC), (y_BNC * 7, y_BNC), (-y_BNC, y_BNC), (half_BNC, y_BNC)],
    )
    torch.testing.assert_close(r2_GT[:3, 0], torch.tensor([0.0, 1.0, 0.0]), rtol=0, atol=1e-3)
    # The same by least squares: the best length for unit predictions, against the variance.
    p_BNC = torch.nn.functional.normalize(half_BNC, dim=-1)
    length = (p_BNC * unit_BNC).sum(-1).mean()
    residual = (unit_BNC - length * p_BNC).square().sum(-1).mean()
    variance = (unit_BNC - unit_BNC.mean((0, 1))).square().sum(-1).mean()
    torch.testing.assert_close(r2_GT[3, 0], 1 - residual / variance, rtol=1e-3, atol=1e-3)
    assert 0.3 < r2_GT[3, 0] < 0.95


@pytest.mark.parametrize("loss", ["cosine", "smooth_l1"])
def test_the_online_gap_is_uniform_until_it_knows_and_then_prefers_what_is_lacking(loss: str):
    gap = OnlineGap([6, 6], 2, loss)
    torch.testing.assert_close(gap(T_B), torch.full((8, 2), 0.5))
    y_BNC = torch.randn(8, 50, 6, generator=torch.Generator().manual_seed(0))
    late = T_B >= 0.5
    known_BNC = torch.where(late[:, None, None], torch.zeros_like(y_BNC), y_BNC)
    observe(gap, [(y_BNC, y_BNC), (known_BNC, y_BNC)])
    weight_BG = gap(T_B)
    torch.testing.assert_close(weight_BG[~late], torch.full((4, 2), 0.5), rtol=0, atol=0.01)
    assert (weight_BG[late, 1] > 0.9).all()


def test_the_online_gap_does_not_depend_on_micro_batches():
    y_BNC, p_BNC = torch.randn(8, 20, 6), torch.randn(8, 20, 6)
    whole, parts = OnlineGap([6], 4, "cosine"), OnlineGap([6], 4, "cosine")
    observe(whole, [(p_BNC, y_BNC)])
    for piece in torch.arange(8).split(3):
        parts.observe(T_B[piece], [p_BNC[piece]], [y_BNC[piece]])
    parts.scores.commit()
    parts.commit()
    torch.testing.assert_close(whole.state_dict(), parts.state_dict())


def train_router(router: DynamicRouter, weight_GT: torch.Tensor, **settings_) -> PriorAlignment:
    torch.manual_seed(0)
    groups = {str(g): (str(g),) for g in range(len(weight_GT))}
    module = prior_alignment(
        router,
        width=4,
        grid=2,
        groups=groups,
        channels=dict.fromkeys(groups, 3),
        head_width=4,
        objective="gap",
        gap=weight_GT,
        **{"prior_weight": 0.0, **settings_},
    )
    optimizer = torch.optim.Adam(module.router.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(250):
        t_B = torch.rand(64, generator=generator)
        batch = {f"prior.{g}": torch.randn(64, 3, 2, 2, generator=generator) for g in groups}
        optimizer.zero_grad()
        module({1: torch.zeros(64, 4, 4)}, t_B, batch).backward()
        optimizer.step()
        module.commit()
    return module


def test_a_router_learns_the_weights_that_it_is_given_whatever_the_losses():
    weight_GT = torch.tensor([[0.7, 0.2], [0.2, 0.2], [0.1, 0.6]])
    module = train_router(DynamicRouter(3, floor=0.05), weight_GT)
    t_B = torch.tensor([0.2, 0.8])
    torch.testing.assert_close(module.router(t_B), weight_GT.T, rtol=0, atol=0.05)
    torch.testing.assert_close(module.router_target(t_B), weight_GT.T)
    assert "router_target.gap_GT" in module.state_dict()


def test_the_prior_still_pulls_at_a_router_with_a_target():
    weight_GT = torch.tensor([[0.9], [0.1]])
    free = train_router(DynamicRouter(2), weight_GT).router(T_B)[:, 0].mean()
    held = train_router(DynamicRouter(2), weight_GT, prior_weight=2.0).router(T_B)[:, 0].mean()
    assert free > 0.85
    assert 0.5 < held < free - 0.1


def test_top_k_selects_by_the_learnt_weights():
    weight_GT = torch.tensor([[0.8, 0.1], [0.1, 0.8], [0.1, 0.1]])
    module = train_router(DynamicRouter(3, top_k=1), weight_GT)
    picked_BG = module.router(torch.tensor([0.2, 0.8]))
    assert picked_BG.tolist() == [[1, 0, 0], [0, 1, 0]]


def test_cross_entropy_is_least_at_the_target_and_finite_at_zero():
    q_BG = torch.tensor([[0.7, 0.3]])
    entropy = torch.special.entr(q_BG).sum(1)
    torch.testing.assert_close(cross_entropy(q_BG, q_BG.log()), entropy)
    assert (cross_entropy(q_BG, torch.tensor([[0.6, 0.4]]).log()) > entropy).all()
    corner_BG = torch.tensor([[500.0, -500.0]]).log_softmax(-1)
    assert cross_entropy(q_BG, corner_BG).isfinite().all()
