# SPDX-License-Identifier: Apache-2.0
"""The diffusion transformer: DiT (arXiv 2212.09748) as used by SiT (arXiv 2401.08740), with taps.

State-dict names are those of the official checkpoints (which follow timm), so they load strictly.
Shape legend: B batch, N tokens, D width, C channels, H W.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ahpa_scale.errors import UserError
from ahpa_scale.models.backbone import Backbone
from ahpa_scale.models.dit_config import DiTGeometry, resolve_geometry
from ahpa_scale.models.dit_layers import (
    DiTBlock,
    FinalLayer,
    LabelEmbedder,
    PatchEmbed,
    TimestepEmbedder,
    linear,
    position_embedding,
)


class DiT(Backbone):
    """Class-conditional velocity network; build it with ``build_dit``.

    Times follow this package: t = 0 is data, t = 1 is noise. The weights released with SiT use
    t = 1 for data: wrap a model that holds them in ``OfficialSiTVelocity``.

    Attributes:
        depth, width, heads, patch_size, input_size, grid (tokens per side): the geometry.
        in_channels, num_classes: channels of the input, number of labels.
        null_label: the label that means "no class" (``num_classes``), or None without one.
        checkpoint_every: recompute every n-th block's insides in the backward pass instead of
            keeping them (Chen et al., arXiv 1604.06174): 1 for all blocks, None for none.
    """

    def __init__(
        self,
        geometry: DiTGeometry,
        *,
        in_channels: int = 4,
        num_classes: int = 1000,
        qk_norm: bool = False,
        learn_sigma: bool = False,
        class_dropout_prob: float = 0.1,
    ) -> None:
        super().__init__()
        self.depth, self.width, self.heads = geometry.depth, geometry.width, geometry.heads
        self.patch_size, self.grid = geometry.patch_size, geometry.grid
        self.input_size = geometry.input_size
        self.in_channels, self.num_classes = in_channels, num_classes
        self.out_channels = in_channels * (2 if learn_sigma else 1)
        self.null_label = num_classes if class_dropout_prob > 0 else None
        self.checkpoint_every: int | None = None
        width = geometry.width
        self.x_embedder = PatchEmbed(geometry.patch_size, in_channels, width)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelEmbedder(num_classes, width, class_dropout_prob)
        self.pos_embed = nn.Parameter(torch.empty(1, self.grid**2, width), requires_grad=False)
        self.blocks: nn.ModuleList = nn.ModuleList(
            DiTBlock(width, geometry.heads, qk_norm) for _ in range(geometry.depth)
        )
        self.final_layer = FinalLayer(width, geometry.patch_size**2 * self.out_channels)
        self.initialize_weights()

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Initialise as the official DiT and SiT do; call again after leaving the meta device."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        self.pos_embed.copy_(position_embedding(self.width, self.grid)[None])
        # The patch convolution is a linear map; its fans are counted as for one.
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        nn.init.zeros_(_bias(self.x_embedder.proj))
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        for layer in (self.t_embedder.mlp[0], self.t_embedder.mlp[2]):
            nn.init.normal_(linear(layer).weight, std=0.02)
        blocks = cast("list[DiTBlock]", list(self.blocks))
        modulations = [block.adaLN_modulation for block in blocks]
        last = self.final_layer
        for modulation in (*modulations, last.adaLN_modulation):
            nn.init.zeros_(linear(modulation[1]).weight)
        nn.init.zeros_(last.linear.weight)

    def forward(
        self,
        x_BCHW: Tensor,
        t_B: Tensor,
        condition_B: Tensor,
        taps: Sequence[int] = (),
        tokens_only: bool = False,
    ) -> Tensor | dict[int, Tensor] | tuple[Tensor, dict[int, Tensor]]:
        """Predicts the velocity of noisy inputs, see :meth:`Backbone.forward`.

        If the model also predicts sigma, the velocity is its first C channels.

        Raises:
            UserError: a tap outside 1..depth, or an input of the wrong size.
        """
        self._check(x_BCHW, taps)
        x_BND = self.x_embedder(x_BCHW) + self.pos_embed
        c_BD = self.t_embedder(t_B) + self.y_embedder(condition_B)
        tapped: dict[int, Tensor] = {}
        last = max(taps, default=0) if tokens_only else self.depth
        for number, block in enumerate(islice(self.blocks, last), start=1):
            if self._recomputes(number):
                x_BND = checkpoint(block, x_BND, c_BD, use_reentrant=False)
            else:
                x_BND = block(x_BND, c_BD)
            if number in taps:
                tapped[number] = x_BND
        if tokens_only:
            return tapped
        v_BCHW = self._unpatchify(self.final_layer(x_BND, c_BD))
        if self.out_channels != self.in_channels:
            v_BCHW = v_BCHW[:, : self.in_channels]
        return (v_BCHW, tapped) if taps else v_BCHW

    def _recomputes(self, number: int) -> bool:
        every = self.checkpoint_every
        return every is not None and number % every == 0 and torch.is_grad_enabled()

    def _check(self, x_BCHW: Tensor, taps: Sequence[int]) -> None:
        wanted = (self.in_channels, self.input_size, self.input_size)
        if tuple(x_BCHW.shape[1:]) != wanted:
            raise UserError(
                f"DiT input must be [B, {', '.join(map(str, wanted))}], got {list(x_BCHW.shape)}"
            )
        for tap in taps:
            if not 1 <= tap <= self.depth:
                nearest = min(max(tap, 1), self.depth)
                raise UserError(
                    f"tap {tap} is outside 1..{self.depth} (blocks count from 1);"
                    f" the nearest is {nearest}"
                )

    def _unpatchify(self, x_BND: Tensor) -> Tensor:
        g, p = self.grid, self.patch_size
        x = x_BND.unflatten(2, (p, p, self.out_channels)).unflatten(1, (g, g))
        return x.permute(0, 5, 1, 3, 2, 4).reshape(-1, self.out_channels, g * p, g * p)


def _bias(module: nn.Conv2d) -> Tensor:
    assert module.bias is not None
    return module.bias


def build_dit(
    name: str = "S/2",
    *,
    input_size: int,
    in_channels: int = 4,
    num_classes: int = 1000,
    qk_norm: bool = False,
    learn_sigma: bool = False,
    class_dropout_prob: float = 0.1,
    depth: int | None = None,
    width: int | None = None,
    heads: int | None = None,
) -> DiT:
    """Build a transformer by name.

    Args:
        name: ``<size>/<patch>``, sizes tiny, S, B, L, XL.
        input_size: side of the input in latent cells (or pixels).
        in_channels: channels of input and velocity.
        num_classes: labels, without the null class.
        qk_norm: LayerNorm on queries and keys, per head.
        learn_sigma: twice the output channels, of which the first half is the velocity (as in the
            released weights).
        class_dropout_prob: above 0, the label table gets a row for the null class. The caller
            drops the labels.
        depth: overrides the size's number of blocks; ``width`` and ``heads`` likewise.
        width: channels per token.
        heads: attention heads.

    Raises:
        UserError: an unknown name or numbers that do not fit together.
    """
    for label, value in (("in_channels", in_channels), ("num_classes", num_classes)):
        if value < 1:
            raise UserError(f"model {name!r}: {label} must be at least 1, got {value}")
    if not 0 <= class_dropout_prob <= 1:
        raise UserError(f"class_dropout_prob must be in [0, 1], got {class_dropout_prob}")
    geometry = resolve_geometry(name, input_size=input_size, depth=depth, width=width, heads=heads)
    return DiT(
        geometry,
        in_channels=in_channels,
        num_classes=num_classes,
        qk_norm=qk_norm,
        learn_sigma=learn_sigma,
        class_dropout_prob=class_dropout_prob,
    )
