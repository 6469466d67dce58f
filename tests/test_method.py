# SPDX-License-Identifier: Apache-2.0
"""The mathematics of alignment, through its public functions. B batch, N tokens, C channels, G
levels, T t-bins.
"""

from __future__ import annotations

import pytest
import torch
from alignments import prior_alignment
from hypothesis import given, settings
from hypothesis import strategies as st

from ahpa_scale.method import (
    BinnedStatistics,
    DynamicRouter,
    PriorAlignment,
    ScheduledRouter,
    UniformRouter,
    build_head,
    cosine_loss,
    group_targets,
    patchify,
    pool_to_grid,
    smooth_l1_loss,
    spatial_normalise,
)
from ahpa_scale.method.router import cross_entropy

GROUPS = {"fine": ("a",), "coarse": ("b", "c")}
CHANNELS = {"fine": 8, "coarse": 12}


def priors(batch_size: int = 6, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (8, 16), "b": (4, 8), "c": (8, 4)}
    return {
        f"prior.{name}": torch.randn(batch_size, channels, side, side, generator=generator)
        for name, (channels, side) in shapes.items()
    }


def alignment(router: torch.nn.Module, **settings_: object) -> PriorAlignment:
    torch.manual_seed(0)
    return prior_alignment(
        router,
        width=16,
        grid=4,
        groups=GROUPS,
        channels=CHANNELS,
        head_width=32,
        **settings_,
    )


def test_pooling_averages_the_cell_under_each_token():
    map_BCHW = torch.arange(64.0).reshape(1, 1, 8, 8)
    tokens_BNC = pool_to_grid(map_BCHW, 4)
    assert tokens_BNC.shape == (1, 16, 1)
    assert tokens_BNC[0, 1, 0] == map_BCHW[0, 0, 0:2, 2:4].mean()
    assert pool_to_grid(map_BCHW.bfloat16(), 4).dtype == torch.float32


def test_patchify_keeps_every_latent_pixel_in_the_dits_own_patches():
    map_BCHW = torch.randn(2, 3, 8, 8)
    tokens_BNC = patchify(map_BCHW, 4)
    assert tokens_BNC.shape == (2, 16, 12)
    torch.testing.assert_close(tokens_BNC[:, 5].reshape(2, 3, 2, 2), map_BCHW[:, :, 2:4, 2:4])


@given(alpha=st.floats(0, 1), scale=st.floats(0.1, 100))
@settings(max_examples=25)
def test_spatial_normalisation_follows_its_formula_and_forgets_the_scale(
    alpha: float, scale: float
):
    target_BNC = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(1)) * scale + 3
    y_BNC = spatial_normalise(target_BNC, alpha)
    torch.testing.assert_close(
        y_BNC.std(dim=1, correction=0), torch.ones(2, 5), rtol=1e-3, atol=1e-3
    )
    expected_BC = (1 - alpha) * target_BNC.mean(1) / target_BNC.std(1, correction=0)
    torch.testing.assert_close(y_BNC.mean(dim=1), expected_BC, rtol=1e-3, atol=1e-3)


def test_groups_concatenate_their_levels_and_carry_no_gradient():
    batch = {name: value.requires_grad_() for name, value in priors().items()}
    fine_BNC, coarse_BNC = group_targets(batch, GROUPS, 4, alpha=None)
    assert fine_BNC.shape == (6, 16, 8)
    assert coarse_BNC.shape == (6, 16, 12)
    torch.testing.assert_close(coarse_BNC[..., 4:], pool_to_grid(batch["prior.c"], 4))
    assert not coarse_BNC.requires_grad


@pytest.mark.parametrize("kind", ["mlp", "conv", "linear"])
def test_heads_map_the_width_to_the_targets_channels(kind: str):
    head = build_head(kind, width=16, hidden=32, channels=5)
    assert head(torch.randn(2, 9, 16)).shape == (2, 9, 5)


def test_the_convolutional_head_sees_its_neighbours_and_the_others_do_not():
    h_BND = torch.randn(1, 9, 16)
    moved_BND = h_BND.clone()
    moved_BND[:, 0] += 1
    for kind, sees in (("conv", True), ("linear", False), ("mlp", False)):
        head = build_head(kind, 16, 32, 5)
        changed = (head(moved_BND) - head(h_BND)).abs().amax(dim=-1)[0]
        assert bool(changed[4] > 0) is sees, kind  # token 4 touches token 0 by a corner
        assert changed[8] == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: build_head("cov", 1, 1, 1), "unknown head 'cov'"),
        (lambda: alignment(UniformRouter(2), loss="cos"), "unknown alignment loss 'cos'"),
        (lambda: alignment(UniformRouter(2), objective="litteral"), "unknown router objective"),
        (lambda: DynamicRouter(3, floor=0.4), "must be below 0.333"),
        (lambda: DynamicRouter(3, top_k=4), "between 1 and 3"),
        (lambda: DynamicRouter(3, hidden=7), "even number"),
    ],
)
def test_wrong_settings_say_what_is_wrong(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_losses_are_per_picture_and_survive_half_precision():
    y_BNC = torch.randn(3, 16, 8)
    torch.testing.assert_close(cosine_loss(y_BNC * 7, y_BNC), -torch.ones(3))
    assert smooth_l1_loss(y_BNC, y_BNC).abs().max() == 0
    # The squared norm of these overflows float16; a loss that normalises before casting returns NaN
    # or inf.
    large_BNC = (y_BNC * 200).half()
    assert large_BNC.square().sum(-1).isinf().any()
    torch.testing.assert_close(cosine_loss(large_BNC, large_BNC), -torch.ones(3))


def test_smooth_l1_is_quadratic_below_beta_and_linear_above():
    zero_BNC = torch.zeros(1, 1, 1)
    assert smooth_l1_loss(zero_BNC + 0.01, zero_BNC).item() == pytest.approx(
        0.5 * 0.01**2 / 0.05, rel=1e-5
    )
    assert smooth_l1_loss(zero_BNC + 1, zero_BNC).item() == pytest.approx(1 - 0.5 * 0.05, rel=1e-5)


routers = st.builds(
    DynamicRouter,
    st.integers(1, 6),
    hidden=st.sampled_from([8, 64]),
    depth=st.integers(2, 5),
    temperature=st.floats(0.2, 5),
    floor=st.sampled_from([0.0, 0.05, 0.1]),
    top_k=st.sampled_from([None, 1]),
    snr_prior=st.floats(-3, 3),
)


@given(router=routers, t=st.lists(st.floats(0, 1), min_size=1, max_size=8))
@settings(max_examples=60)
def test_router_weights_are_a_distribution_above_the_floor(router: DynamicRouter, t: list[float]):
    weight_BG = router(torch.tensor(t))
    torch.testing.assert_close(weight_BG.sum(1), torch.ones(len(t)))
    assert (weight_BG >= router.floor - 1e-6).all()
    assert weight_BG.dtype == torch.float32


def test_a_new_router_is_uniform_and_the_prior_turns_it_coarse_at_high_noise():
    t_B = torch.linspace(0, 1, 5)
    torch.testing.assert_close(DynamicRouter(3)(t_B), torch.full((5, 3), 1 / 3))
    weight_BG = DynamicRouter(3, snr_prior=1.0)(t_B)
    assert weight_BG[-1].argmax() == 2
    assert weight_BG[0].argmax() == 0
    assert torch.equal(weight_BG[2], torch.full((3,), weight_BG[2, 0].item()))
    assert (DynamicRouter(3, snr_prior=-1.0)(t_B)[-1]).argmax() == 0


def test_top_k_selects_and_temperature_flattens():
    t_B = torch.tensor([0.9])
    picked_BG = DynamicRouter(3, top_k=1, snr_prior=1.0)(t_B)
    assert picked_BG.tolist() == [[0, 0, 1]]
    sharp, flat = (
        DynamicRouter(3, snr_prior=1.0, temperature=tau)(t_B).max() for tau in (0.5, 5.0)
    )
    assert 1 / 3 < flat < sharp < 1


@given(router=routers, t=st.floats(0, 1))
@settings(max_examples=40)
def test_shares_and_weights_say_the_same(router: DynamicRouter, t: float):
    raw_BG = router(torch.tensor([t]), raw=True)
    share_BG = raw_BG.exp()
    torch.testing.assert_close(share_BG.sum(1), torch.ones(1))
    torch.testing.assert_close(router.weights(raw_BG), router(torch.tensor([t])))
    torch.testing.assert_close(router.prior(torch.tensor([t])), share_BG)
    if router.top_k is None:
        back_BG = router.shares(router.weights(raw_BG))
        torch.testing.assert_close(back_BG, share_BG, rtol=1e-4, atol=1e-5)


def test_the_cross_entropy_has_its_slope_in_every_corner():
    logit_BG = torch.tensor([[-300.0, 0.0, 300.0], [1e4, 0.0, 0.0]], requires_grad=True)
    target_BG = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    cross_entropy(target_BG, logit_BG.log_softmax(-1)).sum().backward()
    torch.testing.assert_close(logit_BG.grad, logit_BG.detach().softmax(-1) - target_BG)


@pytest.mark.parametrize("objective", ["standardised", "gap", "agreement"])
def test_a_router_that_was_kicked_into_a_corner_comes_back(objective: str):
    torch.manual_seed(0)
    kind = {"gap": torch.full((2, 10), 0.5)} if objective == "gap" else {}
    router = DynamicRouter(2, floor=0.05)
    module = alignment(router, objective=objective, prior_weight=0.5, **kind)
    with torch.no_grad():
        router.mlp[-1].bias.copy_(torch.tensor([20.0, -20.0]))
    kicked = train_router(module, steps=0)
    assert kicked == pytest.approx([0.95, 0.05])
    # Adam swings past the middle on its way.
    easy, _ = train_router(module, steps=400)
    assert 0.15 < easy < 0.85


def test_router_stays_in_float32_under_autocast():
    router = DynamicRouter(3, snr_prior=1.0)
    torch.nn.init.normal_(router.mlp[-1].weight)
    t_B = torch.rand(16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = router(t_B)
    assert torch.equal(inside, router(t_B))


def test_schedule_and_its_reverse_mirror_each_other():
    t_B = torch.linspace(0, 1, 7)
    forward, reverse = ScheduledRouter(4)(t_B), ScheduledRouter(4, reverse=True)(t_B)
    assert forward[-1].argmax() == 3
    torch.testing.assert_close(reverse, forward.flip(0))


def test_total_is_the_weighted_mean_over_levels():
    module = alignment(ScheduledRouter(2), spatial_norm=0.6)
    batch, h_BND, t_B = priors(), torch.randn(6, 16, 16), torch.rand(6)
    loss_BG = torch.stack(
        [
            cosine_loss(head(h_BND), y)
            for head, y in zip(module.heads, group_targets(batch, GROUPS, 4, 0.6), strict=True)
        ],
        dim=1,
    )
    expected = (module.router(t_B) * loss_BG).sum(1).mean()
    torch.testing.assert_close(module({1: h_BND}, t_B, batch), expected)


@pytest.mark.parametrize("objective", ["literal", "standardised"])
def test_the_routers_objective_changes_gradients_and_never_the_logged_value(objective: str):
    batch, h_BND, t_B = priors(), torch.randn(6, 16, 16, requires_grad=True), torch.rand(6)
    module = alignment(DynamicRouter(2, snr_prior=0.5), objective=objective, prior_weight=0.1)
    fixed = alignment(DynamicRouter(2, snr_prior=0.5).requires_grad_(False))
    module({1: h_BND}, t_B, batch)
    module.statistics.commit()
    loss = module({1: h_BND}, t_B, batch)
    torch.testing.assert_close(loss, fixed({1: h_BND}, t_B, batch))
    loss.backward()
    assert module.router.mlp[-1].weight.grad.abs().sum() > 0
    assert h_BND.grad.abs().sum() > 0


def train_router(module: PriorAlignment, steps: int = 300, lr: float = 3e-3) -> list[float]:
    """Two levels, one always easier by a constant; returns the mean weights at the end, the easy
    one's first.
    """
    optimizer = torch.optim.Adam(module.router.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        t_B = torch.rand(64, generator=generator)
        loss_BG = torch.tensor([-0.9, -0.5]) + 0.05 * torch.randn(64, 2, generator=generator)
        raw_BG = module.router(t_B, raw=True)
        weight_BG = module.router.weights(raw_BG)
        module.statistics.observe(t_B, loss_BG, weight_BG.detach())
        optimizer.zero_grad()
        loss = module._router_loss(t_B, loss_BG, raw_BG, weight_BG)
        if module.objective == "literal":
            loss = loss + (weight_BG * loss_BG).sum(1).mean()
        loss.backward()
        optimizer.step()
        module.statistics.commit()
    return module.router(torch.linspace(0, 1, 50)).mean(0).tolist()


def test_the_literal_router_collapses_onto_the_easy_level_and_the_standardised_one_does_not():
    torch.manual_seed(0)
    literal = alignment(DynamicRouter(2), objective="literal", prior_weight=0.0)
    assert train_router(literal)[0] > 0.95
    held = alignment(DynamicRouter(2), objective="standardised", prior_weight=0.5)
    easy, hard = train_router(held)
    assert 0.35 < easy < 0.65
    assert hard == pytest.approx(1 - easy, abs=1e-5)


def test_statistics_do_not_depend_on_micro_batches():
    t_B, loss_BG, weight_BG = torch.rand(64), torch.randn(64, 2), torch.rand(64, 2)
    whole, parts = BinnedStatistics(2, 5), BinnedStatistics(2, 5)
    for _ in range(3):
        whole.observe(t_B, loss_BG, weight_BG)
        for piece in torch.arange(64).split(13):
            parts.observe(t_B[piece], loss_BG[piece], weight_BG[piece])
        whole.commit()
        parts.commit()
    torch.testing.assert_close(whole.state_dict(), parts.state_dict())
    bin_0 = t_B < 0.2
    torch.testing.assert_close(whole.mean_GT[:, 0], loss_BG[bin_0].mean(0))
    torch.testing.assert_close(
        whole.var_GT[:, 0], loss_BG[bin_0].var(0, correction=0), rtol=1e-4, atol=1e-5
    )
    reading = whole.read()
    assert sum(reading["count_T"]) == 3 * 64
    assert reading["weight_GT"][1][0] == pytest.approx(weight_BG[bin_0, 1].mean().item(), rel=1e-5)
    assert whole.read()["weight_GT"][0][0] is None


def test_standardised_losses_are_zero_before_anything_is_known_and_centred_after():
    statistics = BinnedStatistics(2, 4)
    t_B, loss_BG = (
        torch.rand(4000),
        torch.randn(4000, 2) * torch.tensor([0.1, 3.0]) + torch.tensor([5.0, -2.0]),
    )
    assert statistics.standardise(t_B, loss_BG).abs().max() == 0
    statistics.observe(t_B, loss_BG, torch.ones(4000, 2))
    statistics.commit()
    z_BG = statistics.standardise(t_B, loss_BG)
    assert z_BG.mean(0).abs().max() < 0.05
    assert (z_BG.std(0) - 1).abs().max() < 0.05


def test_evaluation_leaves_the_statistics_alone():
    module = alignment(DynamicRouter(2)).eval()
    module({1: torch.randn(6, 16, 16)}, torch.rand(6), priors())
    module.statistics.commit()
    assert module.statistics.seen_T.sum() == 0
