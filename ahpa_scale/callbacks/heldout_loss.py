# SPDX-License-Identifier: Apache-2.0
"""Held-out loss of the averaged weights while training, by the code of `ahpa-scale evaluate`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from composer.core import State
from composer.utils import dist
from torch import Tensor

from ahpa_scale.callbacks.averages import averages_lent
from ahpa_scale.callbacks.common import unwrap
from ahpa_scale.callbacks.measuring import Measuring
from ahpa_scale.evaluation.heldout import Generator, heldout_flow
from ahpa_scale.precision import evaluation_autocast

#: Name in the logs; each bin's has its number appended.
MEASURE = "heldout/flow"


class HeldOutLoss(Measuring):
    """The value is that of `ahpa-scale evaluate` on the checkpoint of the same batch: the same
    samples, noise and bins, and the averaged weights where there are any. The ranks share the
    samples.

    Args:
        interval: time string between measurements.
        batches: this rank's share of the samples, see `heldout_flow`; read once per measurement.
        facts: what identifies the samples, ready for JSON.
        bins: equal parts of t.
        options: of `Measuring`.
    """

    def __init__(
        self,
        interval: str,
        batches: Iterable[Mapping[str, Tensor]],
        facts: Mapping[str, Any],
        *,
        bins: int = 10,
        **options: Any,
    ) -> None:
        super().__init__(interval, {**facts, "bins": bins}, **options)
        self.batches, self.bins = batches, bins

    def measure(self, state: State) -> dict[str, float]:
        """The mean over the bins, then each bin, see `heldout_flow`."""
        with averages_lent(state, self.requests) as backbone:
            device = next(backbone.parameters()).device
            generator = cast(Generator, unwrap(state.model))
            with evaluation_autocast(device):
                found = heldout_flow(generator, self.batches, self.bins, add_up=_add_up)
        bins = {f"{MEASURE}/{place}": value for place, value in enumerate(found["flow_t"])}
        return {MEASURE: found["flow"], **bins}


def _add_up(tensor: Tensor) -> None:
    dist.all_reduce(tensor, reduce_operation="SUM")
