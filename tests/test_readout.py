# SPDX-License-Identifier: Apache-2.0
"""The linear readout against direct regression, and the recoverability map of a small model.

Legend: N tokens, D channels read from, C channels read.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import LEVELS, ToyLatents
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

from ahpa_scale.evaluation.figures import draw_recoverability, lacking
from ahpa_scale.evaluation.readout import PairMoments, explained_shares
from ahpa_scale.evaluation.recoverability import RecoverabilityMap, half, recoverability

CPU = torch.device("cpu")


def pairs(count: int, noise: float, seed: int = 0, offset: float = 0.0):
    """x [N, 6], and y [N, 4] that is linear in it up to noise."""
    generator = torch.Generator().manual_seed(seed)
    x_ND = torch.randn(count, 6, generator=generator)
    weight_DC = torch.randn(6, 4, generator=torch.Generator().manual_seed(99))
    y_NC = x_ND @ weight_DC + noise * torch.randn(count, 4, generator=generator)
    return x_ND + offset, y_NC + 2 * offset


def moments(x_ND, y_NC, sizes=None) -> PairMoments:
    found = PairMoments(x_ND.shape[1], y_NC.shape[1], CPU)
    parts = sizes or [len(x_ND)]
    for x, y in zip(x_ND.split(parts), y_NC.split(parts), strict=True):
        found.update(x, y)
    return found


@settings(max_examples=30)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    noise=st.floats(0.05, 3),
    offset=st.sampled_from([0.0, 100.0]),
)
def test_it_is_ridge_regression_on_all_tokens_at_once(sizes, noise, offset):
    sizes = [*sizes, 30]
    fit, held = pairs(sum(sizes), noise, 1, offset), pairs(50, noise, 2, offset)
    parts = [slice(0, 1), slice(1, 4)]
    found = explained_shares(moments(*fit, sizes), moments(*held), parts, ridge=1e-3)
    # The same by normal equations on the tokens themselves.
    x, y = (part.double().numpy() for part in fit)
    x_mean, y_mean = x.mean(0), y.mean(0)
    gram = (x - x_mean).T @ (x - x_mean)
    penalty = 1e-3 * np.trace(gram) / 6 * np.eye(6)
    weight = np.linalg.solve(gram + penalty, (x - x_mean).T @ (y - y_mean))
    x_held, y_held = (part.double().numpy() for part in held)
    error = (y_held - y_mean - (x_held - x_mean) @ weight) ** 2
    spread = (y_held - y_held.mean(0)) ** 2
    expected = [max(0.0, 1 - error[:, p].sum() / spread[:, p].sum()) for p in parts]
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_noise_explains_nothing_and_what_never_varies_is_no_finding():
    fit, held = pairs(400, 0.0, 1), pairs(400, 0.0, 2)
    everything = [slice(0, 4)]
    assert explained_shares(moments(*fit), moments(*held), everything, 1e-6)[0] > 0.9999
    strange = torch.randn(400, 4, generator=torch.Generator().manual_seed(5))
    shares = explained_shares(moments(*fit), moments(held[0], strange), everything, 1e-4)
    assert shares == [0.0]
    flat = torch.zeros(400, 4)
    still = moments(fit[0], flat), moments(held[0], flat)
    assert explained_shares(*still, everything, 1e-4) == [0.0]
    nothing = moments(torch.ones(400, 6), fit[1]), moments(torch.ones(400, 6), held[1])
    assert explained_shares(*nothing, everything, 1e-4)[0] < 0.05


@pytest.fixture
def alive(make_generator):
    """A generator of three blocks in which each does something."""
    generator = make_generator()
    torch.manual_seed(1)
    for parameter in generator.dit.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.08)
    return generator


def batches(size: int = 16) -> list[dict[str, torch.Tensor]]:
    return list(DataLoader(ToyLatents(64), batch_size=size))


def test_the_latent_is_found_in_little_noise_and_lost_in_much(alive):
    levels = ("latent", *LEVELS)
    found = recoverability(alive, batches(), levels, bins=4)
    r2_LDT = np.asarray(found.r2_LDT)
    assert r2_LDT.shape == (4, 3, 4)
    assert (found.levels, found.blocks, found.bins, found.pictures) == (levels, (1, 2, 3), 4, 64)
    assert r2_LDT[0, 0, 0] > 0.8
    assert r2_LDT[0, 0, 3] < 0.5
    assert (np.diff(r2_LDT[0, 0]) < 0).all()
    # Pure noise but for the picture's mean, so hardly anything can be read.
    assert r2_LDT[1:].max() < 0.5
    assert (r2_LDT >= 0).all()
    assert r2_LDT.max() <= 1
    assert found.to_dict()["r2_LDT"][0][0][0] == pytest.approx(r2_LDT[0, 0, 0], abs=1e-6)


def test_the_map_depends_neither_on_batches_nor_on_the_generators_seed(alive):
    one = recoverability(alive, batches(16), ["latent"], bins=2)
    alive.seed = 7
    alive.train()
    other = recoverability(alive, batches(5)[::-1], ["latent"], bins=2)
    np.testing.assert_allclose(one.r2_LDT, other.r2_LDT, atol=5e-3)
    assert alive.training
    assert all(module.training for module in alive.dit.modules())


def test_its_own_blocks_are_levels_too(alive):
    found = recoverability(alive, batches(), ["self.2", "self.3"], bins=2, lead=0.0)
    r2_LDT = np.asarray(found.r2_LDT)
    # Without a lead a block's own state is the level itself.
    assert r2_LDT[0, 1].min() > 0.99
    assert r2_LDT[1, 2].min() > 0.99
    led = np.asarray(recoverability(alive, batches(), ["self.3"], bins=2, lead=0.3).r2_LDT)
    assert led[0, 2].max() < r2_LDT[1, 2].min()


def test_halves_are_about_even_and_belong_to_the_index():
    index_B = torch.arange(2000)
    fitted_B = half(index_B)
    assert fitted_B.float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert torch.equal(half(index_B[1000:]), fitted_B[1000:])
    # A data set in order of its classes must not be split along them.
    assert fitted_B[index_B % 8 == 0].float().mean().item() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("levels", "count", "bins", "message"),
    [
        ([], 4, 2, "at least one level"),
        (["latent"], 4, 0, "at least one level and one bin"),
        (["external"], 4, 2, "no source makes the level 'external'"),
        (["latent"], 1, 2, r"4 pictures are too few to read 32 channels .* give about 16"),
        (["latent"], 0, 2, "0 pictures are too few"),
    ],
)
def test_what_cannot_be_measured_is_said(alive, levels, count, bins, message):
    with pytest.raises(ValueError, match=message):
        recoverability(alive, batches(4)[: 16 if count == 4 else count], levels, bins=bins)


def test_lacking_is_measured_by_the_best_block_and_unknown_where_all_is_lost():
    r2_DT = np.array([[0.4, 0.01], [0.8, 0.015], [0.6, 0.0]])
    share_DT = lacking(r2_DT)
    np.testing.assert_allclose(share_DT[:, 0], [0.5, 0.0, 0.25])
    assert np.isnan(share_DT[:, 1]).all()


def test_the_figure_names_every_level_and_shows_the_numbers():
    r2_LDT = (((0.9, 0.1), (0.5, 0.05)), ((0.2, 0.0), (0.7, 0.01)))
    levels = ("encoder.down_blocks.1.resnets.0", "latent")
    figure = draw_recoverability(RecoverabilityMap(levels, (1, 2), 2, r2_LDT, 64), "a title")
    titles = [axes.get_title() for axes in figure.axes]
    for name in ("down_blocks.1", "latent"):
        assert name in titles
        assert f"lacking: {name}" in titles
    shown = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    np.testing.assert_allclose(shown[0], r2_LDT[0])
    np.testing.assert_allclose(shown[1], r2_LDT[1])
    assert figure.get_suptitle() == "a title"
