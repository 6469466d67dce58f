# SPDX-License-Identifier: Apache-2.0
"""Projection heads from the backbone's hidden state to one group's channels, for training only.

Legend: B batch, N tokens, D width of the backbone, C channels of the target.
"""

from __future__ import annotations

from torch import Tensor, nn

from ahpa_scale.errors import UserError

HEAD_KINDS = ("mlp", "conv", "linear")


class ConvHead(nn.Module):
    """A 3x3 convolution over the token grid (iREPA, arXiv 2512.10794): one layer that sees a
    token's neighbours.
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, channels, kernel_size=3, padding=1)

    def forward(self, h_BND: Tensor) -> Tensor:
        """Maps ``[B, N, D]`` to ``[B, N, C]``; N must be a square number."""
        side = int(h_BND.shape[1] ** 0.5)
        h_BDHW = h_BND.transpose(1, 2).unflatten(2, (side, side))
        out_BNC: Tensor = self.conv(h_BDHW).flatten(2).transpose(1, 2)
        return out_BNC


def build_head(kind: str, width: int, hidden: int, channels: int) -> nn.Module:
    """Builds one group's head.

    Args:
        kind: ``mlp`` (three linear layers with SiLU, as REPA, arXiv 2410.06940), ``conv`` or
            ``linear``.
        width: D, the backbone's width.
        hidden: hidden width of the MLP; the other kinds have none.
        channels: C, the target's channels.

    Raises:
        UserError: unknown kind.
    """
    if kind == "mlp":
        return nn.Sequential(
            nn.Linear(width, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, channels),
        )
    if kind == "conv":
        return ConvHead(width, channels)
    if kind == "linear":
        return nn.Linear(width, channels)
    raise UserError(f"unknown head {kind!r}; choose one of {', '.join(HEAD_KINDS)}")
