# SPDX-License-Identifier: Apache-2.0
"""Both gradients at a tapped state, the flow's and the alignment's, from one backward pass.

Legend: B batch, N tokens, D width of the backbone, G groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor

from ahpa_scale.method.balance import GradientBalance
from ahpa_scale.method.gap import Agreement


class TapProbe:
    """Gives the heads aliases of the tapped tensors, and measures the gradients that come back.

    An alias receives the alignment's gradient alone. The tapped tensor receives it together with
    the gradient of everything behind the tap, so the difference is the flow's. With several taps,
    the "flow" of a shallower one includes the gradients of the deeper ones.

    Args:
        balance: scales the alignment's gradient and learns from both, or None.
        agreement: learns how each group's gradient agrees with the flow's, or None. It needs one
            alias, and so one gradient in memory, per group.
    """

    def __init__(
        self, balance: GradientBalance | None = None, agreement: Agreement | None = None
    ) -> None:
        self.balance = balance
        self.agreement = agreement

    def watch(self, tapped: Mapping[int, Tensor], taps: Sequence[int], t_B: Tensor) -> list[Tensor]:
        """What each group's head reads.

        Args:
            tapped: block -> tokens ``[B, N, D]``; one that carries no gradient is left alone.
            taps: the block of each group.
            t_B: noise levels.

        Returns:
            G tensors that equal those tapped.
        """
        heads_read: dict[int, Tensor] = {}
        for block in dict.fromkeys(taps):
            groups = [group for group, tap in enumerate(taps) if tap == block]
            h_BND = tapped[block]
            if not h_BND.requires_grad:
                heads_read.update(dict.fromkeys(groups, h_BND))
            elif self.agreement is None:
                heads_read.update(dict.fromkeys(groups, self._aliases(h_BND, [groups[0]], t_B)[0]))
            else:
                aliases = self._aliases(h_BND, groups, t_B)
                heads_read.update(zip(groups, aliases, strict=True))
        return [heads_read[group] for group in range(len(taps))]

    def _aliases(self, h_BND: Tensor, groups: Sequence[int], t_B: Tensor) -> list[Tensor]:
        factor = None if self.balance is None else self.balance.factor()
        received: dict[int, Tensor] = {}

        def keep(group: int, gradient_BND: Tensor) -> Tensor:
            received[group] = gradient_BND if factor is None else gradient_BND * factor
            return received[group]

        def compare(total_BND: Tensor) -> None:
            if received:
                self._report(total_BND, received, factor, t_B)
                received.clear()

        h_BND.register_hook(compare)
        aliases = []
        for group in groups:
            alias_BND = h_BND.view_as(h_BND)
            alias_BND.register_hook(partial(keep, group))
            aliases.append(alias_BND)
        return aliases

    def _report(
        self, total_BND: Tensor, received: Mapping[int, Tensor], factor: Tensor | None, t_B: Tensor
    ) -> None:
        scaled = list(received.values())
        aligned_BND = sum(scaled[1:], start=scaled[0])
        flow_BND = total_BND - aligned_BND
        if self.balance is not None and factor is not None:
            self.balance.observe(flow_BND, aligned_BND, factor)
        if self.agreement is not None:
            self.agreement.observe(t_B, flow_BND, received)
