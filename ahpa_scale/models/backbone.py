# SPDX-License-Identifier: Apache-2.0
"""What the rest of the system needs of a velocity network; ``models/dit`` is one.

Legend: B batch, N tokens, D width, C channels, H W.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

#: Prefix of the backbone's names in a generator's state dict, and so in every checkpoint.
BACKBONE = "dit."


class Backbone(nn.Module):
    """A transformer from noisy inputs to velocities, whose tokens can be tapped after each block.

    It is a class because Python can't type "a module with these attributes". Nothing checks for
    it: any module that has them will do.

    Attributes:
        depth: number of blocks that can be tapped.
        width: D, channels per token.
        grid: tokens per side; there are ``grid**2`` tokens, row by row.
        in_channels, input_size: C and H = W, of the input and the velocity.
        num_classes: conditions are labels in [0, num_classes).
        null_label: the condition that means "no class", which is ``num_classes``; None without one.
        blocks: parts that may be sharded or compiled one at a time. The weights of each are read
            in its own forward pass only.
    """

    depth: int
    width: int
    grid: int
    in_channels: int
    input_size: int
    num_classes: int
    null_label: int | None
    blocks: Iterable[nn.Module]

    def forward(
        self,
        x_BCHW: Tensor,
        t_B: Tensor,
        condition_B: Tensor,
        taps: Sequence[int] = (),
        tokens_only: bool = False,
    ) -> Tensor | dict[int, Tensor] | tuple[Tensor, dict[int, Tensor]]:
        """Predicts the velocity of noisy inputs.

        It draws no random number and does not depend on the mode: labels are dropped by the
        caller, by sample.

        Args:
            x_BCHW: noisy input [B, in_channels, input_size, input_size].
            t_B: times in [0, 1], float32; 0 is data, 1 is noise.
            condition_B: int64 labels in [0, num_classes), or ``null_label``.
            taps: blocks, counted from 1, whose output tokens are wanted too: the very tensors that
                the next blocks read.
            tokens_only: no velocity is wanted; blocks behind the deepest tap need not run.

        Returns:
            The velocity [B, C, H, W]; with taps, a pair of it and ``{block: tokens [B, N, D]}``;
            with `tokens_only` only the latter.
        """
        raise NotImplementedError
