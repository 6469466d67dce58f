# SPDX-License-Identifier: Apache-2.0
"""Random numbers that are a pure function of seed, epoch, sample index and purpose.

Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3",
SC 2011, doi 10.1145/2063384.2063405) in torch integer operations. No state, so a sample's numbers
depend neither on its neighbours in the batch nor on the number of ranks, and nothing is restored
on resuming.
Shape legend: B samples, K blocks of four 32-bit words.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache

import torch
from torch import Tensor

from ahpa_scale.errors import UserError

Words = tuple[Tensor, Tensor, Tensor, Tensor]

_MASK32 = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
# The fourth counter word keeps the two kinds of draws from one key independent of each other.
_UNIFORM_DOMAIN, _NORMAL_DOMAIN = 0, 1


def philox4x32(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """Encrypt 128-bit counters with ten Philox rounds.

    Args:
        counter: four int64 tensors holding 32-bit words in [0, 2**32), broadcastable.
        key: two int64 tensors holding 32-bit words, broadcastable with the counter.

    Returns:
        Four int64 tensors of 32-bit random words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for round_number in range(_ROUNDS):
        if round_number:
            k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK32, (k1 + _KEY_STEPS[1]) & _MASK32
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
    return c0, c1, c2, c3


def _multiply(word: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a 32 x 32 bit product."""
    # Half by half: the full product would overflow int64, whose behaviour C++ leaves undefined.
    upper = word * (factor >> 16)
    lower = word * (factor & 0xFFFF)
    high = (upper + (lower >> 16)) >> 16
    low = (((upper & 0xFFFF) << 16) + lower) & _MASK32
    return high, low


@lru_cache(maxsize=256)
def _stream_words(seed: int, stream: str) -> tuple[int, int]:
    digest = hashlib.blake2b(f"{seed}:{stream}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def sample_key(seed: int, epoch_B: Tensor | int, index_B: Tensor, stream: str) -> Tensor:
    """Key of the random numbers of each sample.

    Args:
        seed: the run's seed, any integer.
        epoch_B: int64 [B], the pass over the data (or one number for all samples).
        index_B: int64 [B], the sample's index in the data set.
        stream: what the numbers are for ("noise", "time", ...); streams are independent.

    Returns:
        int64 [B], non-negative keys for ``uniform`` and ``normal``.
    """
    index_B = index_B.to(torch.int64)
    if isinstance(epoch_B, int):
        epoch_B = torch.full_like(index_B, epoch_B)
    else:
        epoch_B = epoch_B.to(device=index_B.device, dtype=torch.int64)
    first, second = _stream_words(seed, stream)
    key = torch.full_like(index_B, first), torch.full_like(index_B, second)
    low, high, _, _ = philox4x32((*_split(index_B), *_split(epoch_B)), key)
    return ((high & 0x7FFFFFFF) << 32) | low


def uniform(key_B: Tensor, num: int = 1) -> Tensor:
    """Uniform numbers in the open interval (0, 1), the same bits on every device.

    A longer draw begins with the shorter one: ``uniform(key, 2) == uniform(key, 5)[:, :2]``.

    Args:
        key_B: int64 [B] from ``sample_key``.
        num: numbers per sample, at least 1.

    Returns:
        float32 [B, num], multiples of 2**-24 and never 0 or 1.

    Raises:
        UserError: ``num`` below 1.
    """
    if num < 1:
        raise UserError(f"uniform: num must be at least 1, got {num}")
    words = _random_words(key_B, num, _UNIFORM_DOMAIN)
    flat = torch.stack([_to_unit(word) for word in words], dim=-1).flatten(1)
    return flat[:, :num]


def normal(key_B: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers by Box and Muller (1958), bounded by 5.77 in magnitude.

    The logarithm and the sine are polynomials of correctly rounded operations, because the
    libraries' own differ between devices; eager execution therefore gives the same bits everywhere
    (a compiler may fuse multiply and add, which changes the last bit).

    Args:
        key_B: int64 [B] from ``sample_key``.
        shape: shape of one sample.

    Returns:
        float32 [B, *shape].

    Raises:
        UserError: an empty shape or a side below 1.
    """
    if not shape or min(shape) < 1:
        raise UserError(f"normal: shape needs sides of at least 1, got {tuple(shape)}")
    num = math.prod(shape)
    w0, w1, w2, w3 = _random_words(key_B, num, _NORMAL_DOMAIN)
    radius = torch.sqrt(_negative_log(_to_unit(torch.stack((w0, w2), dim=-1))) * 2.0)
    cosine, sine = _cos_sin_turns(_to_unit(torch.stack((w1, w3), dim=-1)))
    flat = torch.stack((radius * cosine, radius * sine), dim=-1).flatten(1)
    return flat[:, :num].reshape(key_B.shape[0], *shape)


def _random_words(key_B: Tensor, num: int, domain: int) -> Words:
    """Four tensors [B, K] with K = ceil(num / 4)."""
    low, high = _split(key_B[:, None])
    block = torch.arange(-(-num // 4), device=key_B.device)[None, :]
    zero = torch.zeros_like(block)
    return philox4x32((block, zero, zero, zero + domain), (low, high))


def _split(value: Tensor) -> tuple[Tensor, Tensor]:
    return value & _MASK32, (value >> 32) & _MASK32


def _to_unit(word: Tensor) -> Tensor:
    # 23 bits plus a half fill float32's 24 exactly; with 24 bits the largest would round to 1.
    return ((word >> 9).to(torch.float32) + 0.5) * 2.0**-23


def _negative_log(u: Tensor) -> Tensor:
    """-ln(u) for float32 u in (0, 1), to about 2 units in the last place."""
    mantissa, exponent = torch.frexp(u)
    # Mantissa into [sqrt(1/2), sqrt(2)), so that u near 1 keeps its relative accuracy.
    small = mantissa < math.sqrt(0.5)
    mantissa = torch.where(small, mantissa * 2.0, mantissa)
    exponent = exponent.to(torch.float32) - small.to(torch.float32)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    z = s * s
    series = z * (z * (z * (z * (1 / 9) + 1 / 7) + 1 / 5) + 1 / 3)
    return -(exponent * math.log(2.0) + (s + s * series) * 2.0)


def _cos_sin_turns(turns: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of 2 pi turns, by quadrant and Taylor series within an eighth of a turn."""
    quadrant = torch.floor(turns * 4.0 + 0.5)
    angle = (turns - quadrant * 0.25) * (2.0 * math.pi)
    z = angle * angle
    cosine = z * (z * (z * (z * (1 / 40320) - 1 / 720) + 1 / 24) - 1 / 2) + 1.0
    sine = angle + angle * (z * (z * (z * (z * (1 / 362880) - 1 / 5040) + 1 / 120) - 1 / 6))
    quarter = quadrant.to(torch.int64)
    odd = (quarter & 1).bool()
    cos_negative = ((quarter + 1) & 2).bool()
    sin_negative = (quarter & 2).bool()
    cos_out = torch.where(odd, sine, cosine)
    sin_out = torch.where(odd, cosine, sine)
    return torch.where(cos_negative, -cos_out, cos_out), torch.where(
        sin_negative, -sin_out, sin_out
    )
