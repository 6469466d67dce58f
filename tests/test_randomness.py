# SPDX-License-Identifier: Apache-2.0
"""Philox against its published vectors; independence of the batch; the distributions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ahpa_scale.models.randomness import normal, philox4x32, sample_key, uniform

# Random123's tests/kat_vectors, rows "philox4x32 10": counter, key, expected.
KNOWN_ANSWERS = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]

GOLDEN_KEYS = [4056165923942988038, 5150354490270884441]
GOLDEN_UNIFORM = [0.5149243474006653, 0.17865031957626343, 0.7114939093589783, 0.32538753747940063]
GOLDEN_NORMAL = [-2.140345811843872, -0.5971204042434692, -2.652888059616089, -0.5850536227226257]


def words(text: str) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor([int(word, 16)]) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_matches_the_published_vectors(counter, key, expected):
    assert philox4x32(words(counter), words(key)) == words(expected)


def test_keys_and_draws_never_change():
    # Golden values: a change here changes every run that is under way and the SiT reference.
    key_B = sample_key(7, torch.tensor([0, 3]), torch.tensor([5, 2**40]), "noise")
    assert key_B.tolist() == GOLDEN_KEYS
    assert uniform(key_B, 2).flatten().tolist() == GOLDEN_UNIFORM
    assert normal(key_B, (2,)).flatten().tolist() == GOLDEN_NORMAL


indices = st.lists(st.integers(0, 2**62), min_size=1, max_size=9, unique=True)


@settings(max_examples=40)
@given(indices, st.integers(-(2**70), 2**70), st.integers(0, 2**33), st.randoms())
def test_a_sample_does_not_depend_on_its_batch(index, seed, epoch, random):
    shuffled = random.sample(index, len(index))
    together = normal(sample_key(seed, epoch, torch.tensor(shuffled), "x"), (3, 3))
    for row, number in zip(together, shuffled, strict=True):
        alone = normal(sample_key(seed, epoch, torch.tensor([number]), "x"), (3, 3))
        assert torch.equal(alone[0], row)


@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(1, 40))
def test_a_longer_draw_begins_with_the_shorter(first, second):
    short, long = sorted((first, second))
    key_B = sample_key(0, 0, torch.arange(3), "x")
    assert torch.equal(uniform(key_B, long)[:, :short], uniform(key_B, short))
    assert torch.equal(normal(key_B, (long,))[:, :short], normal(key_B, (short,)))


def test_seed_epoch_index_stream_and_kind_all_matter():
    one = torch.tensor([1])
    keys = [
        sample_key(0, 0, one, "x"),
        sample_key(1, 0, one, "x"),
        sample_key(0, 1, one, "x"),
        sample_key(0, 0, one + 1, "x"),
        sample_key(0, 0, one + 2**32, "x"),
        sample_key(0, 2**32, one, "x"),
        sample_key(0, 0, one, "y"),
    ]
    assert len({int(key) for key in keys}) == len(keys)
    assert torch.equal(sample_key(0, torch.tensor([1]), one, "x"), sample_key(0, 1, one, "x"))
    assert min(int(key) for key in keys) >= 0


def kolmogorov(values: torch.Tensor, cdf) -> float:
    ordered = cdf(values.flatten().double().sort().values)
    n = ordered.numel()
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    return max((steps[1:] - ordered).max().item(), (ordered - steps[:-1]).max().item())


def test_uniforms_are_uniform_across_and_within_samples():
    u = uniform(sample_key(3, 0, torch.arange(2000), "x"), 100)
    assert u.dtype == torch.float32
    assert 0 < u.min() < 1e-4
    assert 1 - 1e-4 < u.max() < 1
    n = u.numel()
    # 1.95 / sqrt(n) is the 0.1 % point of the Kolmogorov distribution; the seed is fixed.
    assert kolmogorov(u, lambda v: v) < 1.95 / math.sqrt(n)
    assert kolmogorov(u[:, 0], lambda v: v) < 1.95 / math.sqrt(len(u))
    assert (torch.corrcoef(u[:, :8].T) - torch.eye(8)).abs().max() < 4.5 / math.sqrt(len(u))


def test_normals_are_normal_and_uncorrelated():
    x = normal(sample_key(3, 0, torch.arange(2000), "x"), (4, 5, 5))
    n = x.numel()
    assert abs(x.mean().item()) < 4 / math.sqrt(n)
    assert abs(x.var().item() - 1) < 4 * math.sqrt(2 / n)
    assert abs((x.double() ** 4).mean().item() - 3) < 4 * math.sqrt(96 / n)
    assert kolmogorov(x, torch.special.ndtr) < 1.95 / math.sqrt(n)
    flat = x.flatten(1)[:, :8]
    assert (torch.corrcoef(flat.T) - torch.eye(8)).abs().max() < 4.5 / math.sqrt(len(flat))


def test_normals_agree_with_box_muller_in_double_precision():
    key_B = sample_key(11, 0, torch.arange(500), "x")
    words_B4 = torch.stack(
        philox4x32(
            (torch.zeros_like(key_B),) * 3 + (torch.ones_like(key_B),),
            (key_B & 0xFFFFFFFF, key_B >> 32),
        ),
        dim=1,
    )
    u = ((words_B4 >> 9).double() + 0.5) / 2**23
    radius, angle = (-2 * u[:, 0::2].log()).sqrt(), 2 * math.pi * u[:, 1::2]
    exact = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1).flatten(1)
    torch.testing.assert_close(normal(key_B, (4,)).double(), exact, rtol=0, atol=2e-6)


def test_tails_are_finite_at_the_extreme_words(monkeypatch):
    from ahpa_scale.models import randomness

    extremes = torch.tensor([0, 2**32 - 1])
    for first in extremes:
        for second in extremes:
            drawn = (first[None, None], second[None, None]) * 2
            monkeypatch.setattr(randomness, "philox4x32", lambda counter, key, w=drawn: w)
            x = normal(torch.tensor([1]), (4,))
            assert torch.isfinite(x).all()
            assert x.abs().max() < 5.8


@pytest.mark.parametrize("num", [0, -1])
def test_impossible_sizes_are_refused(num):
    key_B = sample_key(0, 0, torch.arange(2), "x")
    with pytest.raises(ValueError, match="at least 1"):
        uniform(key_B, num)
    with pytest.raises(ValueError, match="at least 1"):
        normal(key_B, (3, num))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_same_bits_on_cuda():
    index_B = torch.arange(64)
    host = normal(sample_key(5, 1, index_B, "x"), (4, 32, 32))
    device = normal(sample_key(5, 1, index_B.cuda(), "x"), (4, 32, 32))
    assert torch.equal(host, device.cpu())
