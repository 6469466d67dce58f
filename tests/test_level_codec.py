# SPDX-License-Identifier: Apache-2.0
"""The code of encoder levels: fold, projection, rounding, and what is left over coarser levels.

Legend: B batch, C channels, H W map sides, g token grid, N tokens, P positions of a token.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ahpa_scale.data.codec_fit import level_dims
from ahpa_scale.errors import UserError
from ahpa_scale.method.folding import fit_to_grid, folded_tokens
from ahpa_scale.method.increments import unexplained_share
from ahpa_scale.method.level_codec import LevelCodec
from ahpa_scale.method.level_fit import RECIPES, fit_levels
from ahpa_scale.models.vae_config import KNOWN_VAES, encoder_levels

GRID = 2
FINE, MIDDLE, COARSE = "fine", "middle", "coarse"
DIMS = {FINE: 8, MIDDLE: 8, COARSE: 6}


def levels(count: int = 200, seed: int = 0) -> dict[str, Tensor]:
    """Maps of which each finer one is the next coarser one plus a little detail of its own."""
    generator = torch.Generator().manual_seed(seed)
    coarse_BCHW = 5 + torch.randn(count, 6, 4, 4, generator=generator)
    maps = {COARSE: coarse_BCHW}
    for name, side in ((MIDDLE, 8), (FINE, 16)):
        told_BCHW = F.interpolate(coarse_BCHW, (side, side), mode="bilinear")
        own_BCHW = torch.randn(count, 6, side, side, generator=generator)
        maps[name] = told_BCHW + 0.3 * own_BCHW
    return {name: maps[name] for name in (FINE, MIDDLE, COARSE)}


def tokens(maps: dict[str, Tensor]) -> dict[str, Tensor]:
    every_N = torch.arange(GRID**2)
    return {name: folded_tokens(map_, GRID, every_N).flatten(0, 1) for name, map_ in maps.items()}


def fitted(recipe: str = "residual", dtype: str = "int8") -> LevelCodec:
    codes = fit_levels(tokens(levels()), DIMS, recipe)
    return LevelCodec(GRID, dtype, {name: level.code for name, level in codes.items()})


def values(codec: LevelCodec, maps: dict[str, Tensor], *wanted: str) -> dict[str, Tensor]:
    scores = {name: codec.scores(name, maps[name]) for name in codec.needed(wanted)}
    return codec.values(scores, wanted)


@settings(max_examples=25, deadline=None)
@given(
    grid=st.integers(1, 4),
    cells=st.integers(1, 4),
    channels=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_folding_is_space_to_depth(grid: int, cells: int, channels: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    map_BCHW = torch.randn(2, channels, grid * cells, grid * cells, generator=generator)
    unshuffled_BNC = F.pixel_unshuffle(map_BCHW, cells).flatten(2).transpose(1, 2)
    chosen_N = torch.randperm(grid**2, generator=generator)[: 1 + seed % grid**2]
    folded_BnCP = folded_tokens(map_BCHW, grid, chosen_N)
    assert folded_BnCP.shape == (2, len(chosen_N), channels, cells**2)
    assert torch.equal(folded_BnCP.flatten(2), unshuffled_BNC[:, chosen_N])


def test_other_sides_come_to_the_grid():
    coarse_BCHW = torch.arange(4.0).reshape(1, 1, 2, 2)
    finer_BCHW = fit_to_grid(coarse_BCHW.bfloat16(), 4)
    assert finer_BCHW.dtype == torch.float32
    assert torch.equal(
        finer_BCHW, F.interpolate(coarse_BCHW, (4, 4), mode="bilinear", align_corners=False)
    )
    uneven_BCHW = torch.randn(1, 2, 14, 14)
    assert torch.equal(fit_to_grid(uneven_BCHW, 4), F.adaptive_avg_pool2d(uneven_BCHW, 12))


@pytest.mark.parametrize("recipe", RECIPES)
def test_values_are_white_and_those_of_the_sample(recipe: str):
    maps = levels()
    found = values(fitted(recipe), maps, *maps)
    for name, value_BKgg in found.items():
        assert value_BKgg.shape == (200, DIMS[name], GRID, GRID)
        each_KN = value_BKgg.transpose(0, 1).flatten(1)
        torch.testing.assert_close(each_KN.mean(dim=1), torch.zeros(DIMS[name]), atol=1e-4, rtol=0)
        torch.testing.assert_close(
            each_KN.var(dim=1, correction=0), torch.ones(DIMS[name]), atol=2e-3, rtol=0
        )


def test_a_level_alone_is_the_level_among_others():
    codec, maps = fitted(), levels(8, seed=1)
    together = values(codec, maps, *maps)
    assert codec.needed([COARSE]) == (COARSE,)
    assert codec.needed([MIDDLE]) == (MIDDLE, COARSE)
    assert codec.needed([]) == ()
    for name in maps:
        assert torch.equal(values(codec, maps, name)[name], together[name])


def test_int8_rounds_to_half_a_step_and_cuts_off_the_rest():
    codec = fitted()
    value_BKgg = values(codec, levels(50, seed=2), FINE)[FINE]
    stored_BKgg = codec.quantise(FINE, value_BKgg)
    assert stored_BKgg.dtype == torch.int8
    restored_BKgg = codec.restore(FINE, stored_BKgg)
    assert restored_BKgg.dtype == torch.float16
    step_K11 = codec.codes[FINE].step_K[:, None, None]
    inside = value_BKgg.abs() <= 127 * step_K11
    assert inside.float().mean() > 0.99
    error_BKgg = (restored_BKgg.float() - value_BKgg).abs() / step_K11
    # float16 adds half of its last place, which is below a sixteenth of a step.
    assert error_BKgg[inside].max() <= 0.5 + 1 / 16
    assert codec.quantise(FINE, torch.full((8, 1, 1), 1e6)).flatten().tolist() == [127] * 8
    assert codec.quantise(FINE, torch.full((8, 1, 1), -1e6)).flatten().tolist() == [-127] * 8
    cosine_Bgg = F.cosine_similarity(restored_BKgg.float(), value_BKgg, dim=1)
    assert cosine_Bgg.mean() > 0.999


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_are_stored_as_they_are(dtype: str):
    codec = fitted(dtype=dtype)
    value_BKgg = values(codec, levels(4, seed=2), FINE)[FINE]
    assert torch.equal(codec.rounded(FINE, value_BKgg), value_BKgg.to(getattr(torch, dtype)))


def test_folded_levels_keep_what_no_coarser_level_says():
    """Averaged, a fine level says what the coarser ones say; the residual says its own."""
    held, fit = levels(100, seed=3), levels()
    shares = {"pooled": _increments(_pooled(fit), _pooled(held), fit, held)}
    for recipe in RECIPES:
        codec = fitted(recipe)
        made = [values(codec, maps, *maps) for maps in (fit, held)]
        rows = [{name: _rows(value) for name, value in each.items()} for each in made]
        shares[recipe] = _increments(*rows, fit, held)
    for level in (FINE, MIDDLE):
        assert shares["pooled"][level] < 0.1
        assert shares["residual"][level] > 5 * shares["pooled"][level]
        assert shares["residual"][level] > 0.6


def _pooled(maps: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: token_NCP.mean(dim=2) for name, token_NCP in tokens(maps).items()}


def _rows(value_BKgg: Tensor) -> Tensor:
    return value_BKgg.flatten(2).transpose(1, 2).flatten(0, 1)


def _increments(
    fit: dict[str, Tensor], held: dict[str, Tensor], *maps: dict[str, Tensor]
) -> dict[str, float]:
    """Of the fine and the middle level, over everything that coarser levels hold."""
    whole = [{k: v.flatten(1) for k, v in tokens(each).items()} for each in maps]
    coarser = {FINE: (MIDDLE, COARSE), MIDDLE: (COARSE,)}
    return {
        level: unexplained_share(
            [whole[0][k] for k in names], fit[level], [whole[1][k] for k in names], held[level]
        )
        for level, names in coarser.items()
    }


def test_the_fit_is_the_same_twice_and_leaves_the_random_numbers_alone():
    torch.manual_seed(7)
    one, wanted = fitted(), torch.rand(3)
    torch.manual_seed(7)
    torch.rand(3)
    torch.manual_seed(7)
    two, found = fitted(), torch.rand(3)
    assert torch.equal(wanted, found)
    for level, code in one.codes.items():
        for name, value in vars(code).items():
            assert torch.equal(value, getattr(two.codes[level], name)), name


def test_few_tokens_make_few_dimensions_and_a_constant_level_is_named():
    few = {name: token_NCP[:17] for name, token_NCP in tokens(levels()).items()}
    codes = fit_levels(few, DIMS, "residual")
    assert {name: level.code.dims for name, level in codes.items()} == dict.fromkeys(DIMS, 4)
    few[MIDDLE] = torch.ones_like(few[MIDDLE])
    with pytest.raises(UserError, match="level 'middle' never varies over the sampled pictures"):
        fit_levels(few, DIMS, "residual")


@pytest.mark.parametrize("channels", [4, 300], ids=["few channels", "more channels than tokens"])
def test_the_unexplained_share_is_the_noise(channels: int):
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        hidden_N4 = torch.randn(count, 4, generator=generator)
        x_NX = hidden_N4 @ torch.eye(4).repeat(1, channels // 4) * 1e3 + 7
        return x_NX, hidden_N4 + torch.randn(count, 4, generator=generator) - 50

    (x_NX, y_NC), (held_MX, held_MC) = draw(200), draw(2000)
    share = unexplained_share([x_NX], y_NC, [held_MX], held_MC)
    assert share == pytest.approx(0.5, abs=0.05)
    noise_NX, more_MX = torch.randn_like(x_NX), torch.randn_like(held_MX)
    assert unexplained_share([noise_NX], y_NC, [more_MX], held_MC) > 0.95
    assert unexplained_share([y_NC], y_NC, [held_MC], held_MC) < 1e-3
    assert unexplained_share([x_NX], 0 * y_NC, [held_MX], 0 * held_MC) == 0


def test_the_sd_vae_takes_48_kib_a_picture():
    config = KNOWN_VAES["stabilityai/sd-vae-ft-mse"]
    names = tuple(level.name for level in encoder_levels(config))
    dims = level_dims(names, 64)
    assert list(dims) == list(names)
    assert sum(dims.values()) * 16 * 16 <= 48 * 1024
