# SPDX-License-Identifier: Apache-2.0
"""A diffusion transformer of ahpa_scale as a model of diffusers, with the official DiT's names.

Exported folders hold this file and the layers that it imports, so ahpa_scale itself is not needed.
diffusers' own `DiTTransformer2DModel` is another network: its features of the time have other
frequencies (``downscale_freq_shift=1``), every block has embedders of its own, and queries and keys
have no norm.

Shape legend: B batch, N tokens, D width, C channels, H W.
"""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from ahpa_scale.models.dit_layers import (
    DiTBlock,
    FinalLayer,
    LabelEmbedder,
    PatchEmbed,
    TimestepEmbedder,
)


class AhpaScaleDiT(ModelMixin, ConfigMixin):
    """Class-conditional velocity network. t = 0 is data, t = 1 is noise.

    Args:
        depth, width, heads: blocks, channels per token, attention heads.
        patch_size: side of a patch, in cells of the input.
        input_size: side of the input.
        in_channels: channels of the input and of the velocity.
        num_classes: labels, without the null class.
        qk_norm: whether queries and keys pass a LayerNorm.
        learn_sigma: whether the last layer has twice the channels, of which the first half is used.
        null_class: whether the label `num_classes` means "no class".
        time_reversed: the weights are of the official SiT, v(x, t) = -network(x, 1 - t).
        latent_shift, latent_scale: per channel; the input is (latent - shift) * scale.
    """

    @register_to_config
    def __init__(
        self,
        depth: int,
        width: int,
        heads: int,
        patch_size: int,
        input_size: int,
        in_channels: int,
        num_classes: int,
        qk_norm: bool = False,
        learn_sigma: bool = False,
        null_class: bool = True,
        time_reversed: bool = False,
        latent_shift: tuple[float, ...] = (),
        latent_scale: tuple[float, ...] = (),
    ) -> None:
        super().__init__()
        outputs = in_channels * (2 if learn_sigma else 1)
        self.x_embedder = PatchEmbed(patch_size, in_channels, width)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelEmbedder(num_classes, width, float(null_class))
        tokens = (input_size // patch_size) ** 2
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width), requires_grad=False)
        self.blocks = nn.ModuleList(DiTBlock(width, heads, qk_norm) for _ in range(depth))
        self.final_layer = FinalLayer(width, patch_size**2 * outputs)

    @property
    def null_label(self) -> int | None:
        """The label that means "no class"; None without one."""
        return self.config.num_classes if self.config.null_class else None

    def forward(self, x_BCHW: Tensor, t_B: Tensor, labels_B: Tensor) -> Tensor:
        """The velocity dx/dt [B, C, H, W].

        Args:
            x_BCHW: noisy latents, scaled.
            t_B: times in [0, 1], float32.
            labels_B: int64 in [0, num_classes), or `null_label`.
        """
        if self.config.time_reversed:
            return -self._network(x_BCHW, 1.0 - t_B, labels_B)
        return self._network(x_BCHW, t_B, labels_B)

    def _network(self, x_BCHW: Tensor, t_B: Tensor, labels_B: Tensor) -> Tensor:
        x_BND = self.x_embedder(x_BCHW) + self.pos_embed
        c_BD = self.t_embedder(t_B) + self.y_embedder(labels_B)
        for block in self.blocks:
            x_BND = block(x_BND, c_BD)
        p, g = self.config.patch_size, self.config.input_size // self.config.patch_size
        patches = self.final_layer(x_BND, c_BD).unflatten(2, (p, p, -1)).unflatten(1, (g, g))
        v_BCHW = patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        return v_BCHW[:, : self.config.in_channels]
