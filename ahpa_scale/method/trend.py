# SPDX-License-Identifier: Apache-2.0
"""Whether the alignment still makes progress: a fast and a slow average of its residual."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ahpa_scale.method.rank_sums import RankSums


@dataclass(frozen=True)
class Plateau:
    """When a residual counts as no longer improving ("What Visual Generators Need from Teachers",
    RARE, 2026).

    Attributes:
        fast: decay of the fast average, per batch.
        slow: decay of the slow one.
        improvement: share by which the fast one must lie below the slow one.
    """

    fast: float = 0.999
    slow: float = 0.99995
    improvement: float = 0.02

    @property
    def warm_up(self) -> float:
        """Batches before the first judgement: a tenth of the slow average's memory."""
        return 0.1 / (1 - self.slow)


@dataclass(frozen=True)
class Release(Plateau):
    """Release by measurement: once the residual stays on its plateau, the weight falls to 0.

    Attributes:
        ramp: Composer time string of the fall.
    """

    ramp: str = "0.125dur"


class ResidualTrend(RankSums):
    """Averages the weighted residual, one value a batch, on the device.

    Its state is not in the state dict: the algorithm that decides by it saves it.

    Args:
        plateau: the averages' decays and the rule.
    """

    def __init__(self, plateau: Plateau | None = None) -> None:
        super().__init__()
        self.plateau = plateau or Plateau()
        self.batches = 0
        self._averages: Tensor | None = None

    @torch.no_grad()
    def observe(self, residual: Tensor, pictures: int) -> None:
        """Adds one micro-batch's mean residual, a scalar."""
        self.add(torch.stack([residual.float() * pictures, residual.new_full((), pictures)]))

    def settle(self, *sums: Tensor) -> None:
        """Moves both averages."""
        (total,) = sums
        if self._averages is None:
            self._averages = torch.zeros(2, device=total.device)
        self._averages = self._averages.to(total.device)
        for average, decay in zip(
            self._averages, (self.plateau.fast, self.plateau.slow), strict=True
        ):
            # Without a picture the average stays where it is.
            residual = torch.where(total[1] > 0, total[0] / total[1], average)
            average.lerp_(residual.float(), 1 - decay)
        self.batches += 1

    def read(self) -> tuple[float, float]:
        """The fast and the slow average, corrected for their start at 0; waits for the device."""
        if self._averages is None:
            return 0.0, 0.0
        fast, slow = self._averages.tolist()
        plateau, batches = self.plateau, self.batches
        return fast / (1 - plateau.fast**batches), slow / (1 - plateau.slow**batches)

    def reached(self) -> bool:
        """Whether the residual has stopped falling; waits for the device."""
        if self.batches < self.plateau.warm_up:
            return False
        fast, slow = self.read()
        return fast > (1 - self.plateau.improvement) * slow

    def state(self) -> dict[str, float]:
        """What :meth:`load` goes on from, as host numbers."""
        fast, slow = (0.0, 0.0) if self._averages is None else self._averages.tolist()
        return {"batches": self.batches, "fast": fast, "slow": slow}

    def load(self, state: Mapping[str, float]) -> None:
        """Goes on from a state."""
        self.batches = int(state["batches"])
        self._averages = torch.tensor([state["fast"], state["slow"]]) if self.batches else None
