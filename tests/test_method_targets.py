# SPDX-License-Identifier: Apache-2.0
"""What hidden states are compared with: grids, whitening, token weights and the placebo.

B batch, N tokens, C channels, K whitened dimensions, D width.
"""

from __future__ import annotations

import pytest
import torch
from alignments import prior_alignment
from hypothesis import given, settings
from hypothesis import strategies as st

from ahpa_scale.method import (
    AlignmentLoss,
    GroupTargets,
    UniformRouter,
    Whitening,
    cosine_loss,
    pool_to_grid,
    pool_tokens,
    residual_weights,
    smooth_l1_loss,
    spatial_normalise,
    whitening,
)

GROUPS = {"fine": ("a",), "coarse": ("b",)}


def priors(batch_size: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (6, 8), "b": (3, 4)}
    return {
        f"prior.{name}": torch.randn(batch_size, channels, side, side, generator=generator) + 1
        for name, (channels, side) in shapes.items()
    }


@given(side=st.integers(1, 9), data=st.data())
@settings(max_examples=30)
def test_pooled_tokens_are_the_means_of_their_cells(side: int, data: st.DataObject):
    grid = data.draw(st.integers(1, side))
    tokens_BNC = torch.randn(2, side * side, 3)
    map_BCHW = tokens_BNC.transpose(1, 2).unflatten(2, (side, side))
    torch.testing.assert_close(pool_tokens(tokens_BNC, grid), pool_to_grid(map_BCHW, grid))
    if grid == side:
        assert pool_tokens(tokens_BNC, grid) is tokens_BNC


def test_a_group_is_normalised_at_the_full_grid_and_then_pooled():
    batch = priors()
    fine_BNC, coarse_B1C = GroupTargets(GROUPS, 4, 0.6, grids=[2, 1])(batch)
    full_BNC = spatial_normalise(pool_to_grid(batch["prior.a"], 4), 0.6)
    torch.testing.assert_close(fine_BNC, pool_tokens(full_BNC, 2))
    y_BNC = spatial_normalise(pool_to_grid(batch["prior.b"], 4), 0.6)
    torch.testing.assert_close(coarse_B1C, y_BNC.mean(dim=1, keepdim=True))


@pytest.mark.parametrize("head", ["mlp", "conv", "linear"])
def test_heads_see_the_tapped_tokens_on_their_groups_grid(head: str):
    module = prior_alignment(
        UniformRouter(2),
        width=8,
        grid=4,
        groups=GROUPS,
        channels={"fine": 6, "coarse": 3},
        head=head,
        head_width=16,
        grids=[4, 2],
        taps=[1, 3],
    )
    tapped = {1: torch.randn(5, 16, 8), 3: torch.randn(5, 16, 8)}
    fine_BNC, coarse_BNC = GroupTargets(GROUPS, 4, 0.6, grids=[4, 2])(priors())
    expected = (
        cosine_loss(module.heads[0](tapped[1]), fine_BNC)
        + cosine_loss(module.heads[1](pool_tokens(tapped[3], 2)), coarse_BNC)
    ).mean() / 2
    torch.testing.assert_close(module(tapped, torch.rand(5), priors()), expected)
    assert module.blocks == (1, 3)


@pytest.mark.parametrize(
    ("grids", "spatial_norm", "message"),
    [
        ([4, 5], 0.6, "group 'coarse': a grid of 5 must lie between 1 and 4"),
        ([0, 4], 0.6, "group 'fine': a grid of 0"),
        ([4, 1], 1.0, "group 'coarse': a grid of 1 keeps only the token mean"),
    ],
)
def test_impossible_grids_are_named(grids: list[int], spatial_norm: float, message: str):
    with pytest.raises(ValueError, match=message):
        GroupTargets(GROUPS, 4, spatial_norm, grids=grids)


def level_statistics(channels: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Correlated tokens of very different spread, their mean and their covariance."""
    generator = torch.Generator().manual_seed(channels)
    mix_CC = torch.randn(channels, channels, generator=generator) / 4 + torch.eye(channels)
    spread_C = torch.linspace(1, 0.3, channels)
    tokens_NC = torch.randn(4000, channels, generator=generator) * spread_C @ mix_CC + 3
    return tokens_NC, tokens_NC.mean(0), torch.cov(tokens_NC.T, correction=0)


@pytest.mark.parametrize(("channels", "dims"), [(12, 4), (6, 6), (4, 64)])
def test_whitened_tokens_are_uncorrelated_with_variance_1(channels: int, dims: int):
    tokens_NC, mean_C, covariance_CC = level_statistics(channels)
    module = Whitening(*whitening(mean_C, covariance_CC, dims, floor=1e-9))
    y_NK = module(tokens_NC[None])[0]
    kept = min(channels, dims)
    assert (module.dims, y_NK.shape[1]) == (kept, kept)
    torch.testing.assert_close(
        torch.cov(y_NK.T, correction=0).reshape(kept, kept), torch.eye(kept), rtol=0, atol=2e-3
    )
    torch.testing.assert_close(y_NK.mean(0), torch.zeros(kept), rtol=0, atol=1e-3)


def test_whitening_keeps_the_directions_that_vary_most():
    variance_C = torch.tensor([0.5, 9.0, 4.0, 1.0])
    mean_C, matrix_CK = whitening(torch.zeros(4), torch.diag(variance_C), 2)
    assert matrix_CK.abs().argmax(dim=0).tolist() == [1, 2]
    torch.testing.assert_close(matrix_CK.amax(dim=0), torch.tensor([1 / 3, 1 / 2]))
    assert mean_C.dtype == matrix_CK.dtype == torch.float32


def test_whitening_does_not_blow_up_what_hardly_varies():
    covariance_CC = torch.diag(torch.tensor([4.0, 1e-12, 0.0]))
    _, matrix_CK = whitening(torch.zeros(3), covariance_CC, 3, floor=0.01)
    torch.testing.assert_close(matrix_CK.abs().amax(dim=0), torch.tensor([0.5, 5.0, 5.0]))


@pytest.mark.parametrize(
    ("covariance_CC", "dims", "message"),
    [
        (torch.eye(3), 0, "give at least 1"),
        (torch.eye(4), 2, r"\[4, 4\]"),
        (torch.zeros(3, 3), 2, "never varies"),
    ],
)
def test_what_cannot_be_whitened_is_refused(covariance_CC, dims: int, message: str):
    with pytest.raises(ValueError, match=message):
        whitening(torch.zeros(3), covariance_CC, dims)


def test_targets_are_whitened_per_level_and_travel_with_the_state_dict():
    def targets(seed: int) -> GroupTargets:
        torch.manual_seed(seed)
        matrices = {"a": torch.randn(6, 4), "b": torch.randn(3, 2)}
        maps = {level: Whitening(torch.randn(len(m)), m) for level, m in matrices.items()}
        return GroupTargets({"both": ("a", "b")}, 4, None, whitening=maps)

    one, other = targets(1), targets(2)
    (y_BNC,) = one(priors())
    a_BNC = pool_to_grid(priors()["prior.a"], 4) - one.whitening[0].mean_C
    torch.testing.assert_close(y_BNC[..., :4], a_BNC @ one.whitening[0].matrix_CK)
    assert y_BNC.shape == (5, 16, 6)
    assert not torch.equal(y_BNC, other(priors())[0])
    other.load_state_dict(one.state_dict())
    assert torch.equal(y_BNC, other(priors())[0])


def test_whitened_targets_stay_in_float32_under_autocast():
    maps = {"a": Whitening(torch.ones(6), torch.randn(6, 4))}
    targets = GroupTargets({"fine": ("a",)}, 4, None, whitening=maps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = targets(priors())[0]
    assert torch.equal(inside, targets(priors())[0])


def test_the_placebo_gives_each_picture_the_targets_of_another():
    plain = GroupTargets(GROUPS, 4, 0.6)(priors())
    placebo = GroupTargets(GROUPS, 4, 0.6, of_another=True)
    for own_BNC, other_BNC in zip(plain, placebo(priors()), strict=True):
        assert torch.equal(other_BNC[1:], own_BNC[:-1])
        assert torch.equal(other_BNC[0], own_BNC[-1])
    with pytest.raises(ValueError, match="at least 2 pictures"):
        placebo(priors(batch_size=1))


@given(spread=st.floats(0, 10), tokens=st.integers(1, 40))
@settings(max_examples=40)
def test_token_weights_have_mean_1_and_stay_in_their_bounds(spread: float, tokens: int):
    generator = torch.Generator().manual_seed(tokens)
    residual_BN = (torch.randn(3, tokens, generator=generator) * spread).exp()
    weight_BN = residual_weights(residual_BN)
    torch.testing.assert_close(weight_BN.mean(dim=1), torch.ones(3))
    assert (weight_BN.amax(dim=1) <= 16.001 * weight_BN.amin(dim=1)).all()


def test_token_weights_follow_the_residual_and_carry_no_gradient():
    residual_BN = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]], requires_grad=True)
    weight_BN = residual_weights(residual_BN)
    torch.testing.assert_close(weight_BN[0], torch.tensor([0.5, 1.0, 1.5]))
    assert not weight_BN.requires_grad
    assert weight_BN[1].isfinite().all(), "a perfect match"


@pytest.mark.parametrize("kind", ["cosine", "smooth_l1"])
def test_a_weighted_loss_counts_tokens_by_their_distance(kind: str):
    p_BNC, y_BNC = torch.randn(4, 16, 8), torch.randn(4, 16, 8)
    single = cosine_loss if kind == "cosine" else smooth_l1_loss
    loss = AlignmentLoss(kind, 0.05, "residual")
    loss_BN = torch.stack([single(p_BNC[:, n : n + 1], y_BNC[:, n : n + 1]) for n in range(16)], 1)
    expected_B = (residual_weights(loss_BN - loss.optimum) * loss_BN).mean(1)
    torch.testing.assert_close(loss(p_BNC, y_BNC), expected_B)
    assert (loss(p_BNC, y_BNC) > AlignmentLoss(kind, 0.05)(p_BNC, y_BNC)).all()
    torch.testing.assert_close(loss(y_BNC, y_BNC), torch.full((4,), loss.optimum))


def test_unknown_token_weights_are_named():
    with pytest.raises(ValueError, match="unknown token weights 'resid'; choose one of uniform"):
        AlignmentLoss("cosine", 0.05, "resid")
