# SPDX-License-Identifier: Apache-2.0
"""The parts of the diffusion transformer, with the parameter names of timm and the official DiT.

Shape legend: B batch, N tokens, D width, C channels, H W, h heads, K channels per head, NN query
and key tokens.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FREQUENCIES = 256
_MAX_PERIOD = 10_000.0


def _modulate(x_BND: Tensor, shift_BD: Tensor, scale_BD: Tensor) -> Tensor:
    return x_BND * (1 + scale_BD[:, None]) + shift_BD[:, None]


class PatchEmbed(nn.Module):
    """Non-overlapping patches to tokens, row by row: [B, C, H, W] to [B, N, D]."""

    def __init__(self, patch_size: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        # Contiguous: all that follows would keep a transposed layout, and each LayerNorm copies it.
        # From it torch's compiler for CPUs (2.7 and 2.14) even computes NaN, where it fuses a
        # LayerNorm with the sum of float32 tokens and a bfloat16 product.
        return self.proj(x_BCHW).flatten(2).transpose(1, 2).contiguous()


def time_frequencies(device: torch.device) -> Tensor:
    """Angular frequencies of the sinusoidal features of t, from 1 to almost 1e-4: float32 [F/2]."""
    half = _FREQUENCIES // 2
    steps = torch.arange(half, dtype=torch.float32, device=device)
    return torch.exp(-math.log(_MAX_PERIOD) * steps / half)


class TimestepEmbedder(nn.Module):
    """Sinusoidal features of t and a two-layer MLP: [B] to [B, D]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t_B: Tensor) -> Tensor:
        angles = t_B[:, None].float() * time_frequencies(t_B.device)[None]
        features = torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)
        return self.mlp(features.to(linear(self.mlp[0]).weight.dtype))


def linear(layer: nn.Module) -> nn.Linear:
    """A layer of a Sequential, whose type torch does not know."""
    return cast(nn.Linear, layer)


class LabelEmbedder(nn.Module):
    """Class table; one more row for the null class when labels are dropped in training."""

    def __init__(self, num_classes: int, width: int, dropout_prob: float) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + int(dropout_prob > 0), width)

    def forward(self, y_B: Tensor) -> Tensor:
        return self.embedding_table(y_B)


def attend(q_BhNK: Tensor, k_BhNK: Tensor, v_BhNK: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(K)) v: torch's fused kernel, but two plain products on a CPU.

    On CPUs the fused kernel's backward pass costs several times the products at the few hundred
    tokens of a DiT: a training step of ``tiny`` at 16 tokens took 1.5 times as long with it.
    """
    if q_BhNK.device.type != "cpu":
        return F.scaled_dot_product_attention(q_BhNK, k_BhNK, v_BhNK)
    scale = q_BhNK.shape[-1] ** -0.5
    weight_BhNN = (q_BhNK * scale @ k_BhNK.transpose(-2, -1)).softmax(dim=-1, dtype=torch.float32)
    return weight_BhNN.to(v_BhNK.dtype) @ v_BhNK


class QueryKeyValue(nn.Linear):
    """Queries, keys and values in one product; the keys' bias can be frozen.

    A key's bias adds the same value to all logits of a query, and the softmax cancels it. So its
    gradient is only rounding error. Adam would turn that into full steps, different on each engine.
    With a norm on the keys the bias matters. Checkpoints hold it in both cases.
    """

    def __init__(self, width: int, train_key_bias: bool) -> None:
        super().__init__(width, 3 * width)
        self.train_key_bias = train_key_bias

    def forward(self, x_BND: Tensor) -> Tensor:
        bias_D: Tensor = self.bias
        if not self.train_key_bias and torch.is_grad_enabled():
            query, key, value = bias_D.chunk(3)
            bias_D = torch.cat([query, key.detach(), value])
        return F.linear(x_BND, self.weight, bias_D)


class Attention(nn.Module):
    """Multi-head self-attention with timm's parameter names and optional query/key LayerNorm."""

    def __init__(self, width: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = QueryKeyValue(width, train_key_bias=qk_norm)
        self.q_norm = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        qkv_BNhK = self.qkv(x_BND).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q_BhNK, k_BhNK, v_BhNK = (part.transpose(1, 2) for part in qkv_BNhK)
        q_BhNK, k_BhNK = self.q_norm(q_BhNK), self.k_norm(k_BhNK)
        # Under autocast LayerNorm returns float32, but attention needs the dtype of v.
        q_BhNK, k_BhNK = q_BhNK.to(v_BhNK.dtype), k_BhNK.to(v_BhNK.dtype)
        out_BhNK = attend(q_BhNK, k_BhNK, v_BhNK)
        return self.proj(out_BhNK.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers around tanh-approximated GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x_BND), approximate="tanh"))


class DiTBlock(nn.Module):
    """Attention and MLP, each modulated and gated by the condition (adaLN-Zero, DiT sec. 3.2)."""

    def __init__(self, width: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(width, heads, qk_norm)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.mlp = Mlp(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x_BND: Tensor, c_BD: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c_BD).chunk(6, dim=1)
        x_BND = x_BND + gate1[:, None] * self.attn(_modulate(self.norm1(x_BND), shift1, scale1))
        return x_BND + gate2[:, None] * self.mlp(_modulate(self.norm2(x_BND), shift2, scale2))


class FinalLayer(nn.Module):
    """Modulated LayerNorm and the projection of tokens to patches."""

    def __init__(self, width: int, out_features: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(width, out_features)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x_BND: Tensor, c_BD: Tensor) -> Tensor:
        shift_BD, scale_BD = self.adaLN_modulation(c_BD).chunk(2, dim=1)
        return self.linear(_modulate(self.norm_final(x_BND), shift_BD, scale_BD))


def position_embedding(width: int, grid: int) -> Tensor:
    """Fixed 2-D sin-cos table [N, D]: sin and cos of the column, then sin and cos of the row."""
    # On the CPU in float64, whatever the default device: every machine then has the same table.
    steps = torch.arange(width // 4, dtype=torch.float64, device="cpu")
    frequencies = 1.0 / _MAX_PERIOD ** (steps / (width / 4))
    angles = torch.arange(grid, dtype=torch.float64, device="cpu")[:, None] * frequencies[None]
    table = torch.cat([angles.sin(), angles.cos()], dim=1)
    column, row = table.repeat(grid, 1), table.repeat_interleave(grid, dim=0)
    return torch.cat([column, row], dim=1).float()
