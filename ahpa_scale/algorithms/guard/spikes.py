# SPDX-License-Identifier: Apache-2.0
"""Loss spikes: losses far above a rolling window's median, in units of its spread."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ahpa_scale.errors import UserError

Action = Literal["warn", "stop", "rollback"]
SMALLEST_WINDOW = 10
#: A normal distribution's standard deviation over its median absolute deviation.
_NORMAL = 1.4826


@dataclass(frozen=True)
class Spikes:
    """What counts as a spike, and what follows.

    Attributes:
        action: ``warn``, ``stop`` or ``rollback``, after `patience` spikes in a row.
        window: past batches to compare with; nothing is a spike until it is full.
        threshold: how far above the median, in robust standard deviations.
        patience: spikes in a row before anything is done; at most half of the window, because more
            spikes would become its median.

    Raises:
        UserError: an option out of range.
    """

    action: Action = "warn"
    window: int = 100
    threshold: float = 8.0
    patience: int = 3

    def __post_init__(self) -> None:
        if self.window < SMALLEST_WINDOW:
            raise UserError(f"window is {self.window}: give at least {SMALLEST_WINDOW} batches")
        if not (self.threshold > 0 and math.isfinite(self.threshold)):
            raise UserError(f"threshold is {self.threshold}: give a number above 0, such as 8")
        if not 1 <= self.patience <= self.window // 2:
            raise UserError(
                f"patience is {self.patience}: give 1 to {self.window // 2}, half of the window"
            )


def spike_level(losses: Sequence[float], threshold: float) -> float:
    """The loss above which the next one is a spike: ``median + threshold * 1.4826 * MAD``.

    MAD is the median absolute deviation. Both stay stable while fewer than half of the losses are
    outliers; a mean and a standard deviation would follow the first spike.

    Args:
        losses: finite, at least one.
        threshold: in robust standard deviations.
    """
    middle = statistics.median(losses)
    spread = statistics.median(abs(loss - middle) for loss in losses)
    # Almost equal losses, as a tiny test set gives, have no spread to measure by.
    return middle + threshold * max(_NORMAL * spread, 1e-6 * abs(middle))


class SpikeWatch:
    """Follows the losses of a run; its state is plain numbers.

    Args:
        spikes: the rule.
    """

    def __init__(self, spikes: Spikes) -> None:
        self.rule = spikes
        self._losses: deque[float] = deque(maxlen=spikes.window)
        self.streak = 0

    def see(self, loss: float) -> float | None:
        """Takes in one batch's loss. A loss that isn't finite is ignored: `finite` handles it.

        Returns:
            The level that was passed, if this was a spike; else None.
        """
        if not math.isfinite(loss):
            return None
        full = len(self._losses) == self.rule.window
        level = spike_level(self._losses, self.rule.threshold) if full else math.inf
        # Spikes go into the window too: a loss that has moved for good becomes the new normal.
        self._losses.append(loss)
        self.streak = self.streak + 1 if loss > level else 0
        return level if self.streak else None

    def due(self) -> bool:
        """Whether patience has just run out: true once per run of spikes."""
        return self.streak == self.rule.patience

    def state(self) -> dict[str, Any]:
        """What :meth:`load` goes on from."""
        return {"losses": list(self._losses), "streak": self.streak}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state, whatever its window was."""
        self._losses.clear()
        self._losses.extend(float(loss) for loss in state["losses"])
        self.streak = int(state["streak"])
