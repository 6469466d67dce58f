# SPDX-License-Identifier: Apache-2.0
"""What AHPA logs at an interval, and what it warns of."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from composer.core import State
from composer.loggers import Logger
from composer.utils import dist

from ahpa_scale.method import DynamicRouter, PriorAlignment

COLLAPSED = 0.1
_log = logging.getLogger(__name__)


class Reporter:
    """Logs the router, the gradients' balance and the residual; warns once of each trouble."""

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def report(self, alignment: PriorAlignment, state: State, logger: Logger) -> None:
        """Brings the statistics since the last report to the host and logs them."""
        summary = alignment.read_summary(batch=state.timestamp.batch.value)
        metrics: dict[str, float] = {}
        for row, name in enumerate(summary["levels"]):
            for bin_index, weight in enumerate(summary["weight_GT"][row]):
                if weight is not None:
                    t = (bin_index + 0.5) / len(summary["count_T"])
                    metrics[f"router/{name}/t{t:.2f}"] = weight
        if alignment.balance is not None:
            read = alignment.balance.read()
            metrics.update({f"alignment/{name}": value for name, value in read.items()})
        logger.log_metrics(metrics)
        self._check_router(alignment, summary, logger)

    def _check_router(
        self, alignment: PriorAlignment, summary: Mapping[str, Any], logger: Logger
    ) -> None:
        router = alignment.router
        # A router that is told to pick one level has no entropy by design.
        if not isinstance(router, DynamicRouter) or router.num_levels < 2 or router.top_k == 1:
            return
        entropy = relative_entropy(summary["weight_GT"])
        if entropy is None:
            return
        logger.log_metrics({"alignment/router_entropy": entropy})
        # With a floor, a router that picks one level still has this much entropy.
        rest = [router.floor] * (router.num_levels - 1)
        least = relative_entropy([[weight] for weight in (1 - sum(rest), *rest)])
        assert least is not None
        if entropy < least + COLLAPSED * (1 - least):
            self.warn(
                "router_collapsed",
                f"the router has collapsed: its entropy is {entropy:.1%} of that of equal weights; "
                "see alignment.router.objective, floor and prior_weight",
                logger,
            )

    def warn(self, name: str, text: str, logger: Logger) -> None:
        """Warns once: a line in Python's log, and a metric ``alignment/warning_<name>``."""
        if name in self._warned:
            return
        self._warned.add(name)
        logger.log_metrics({f"alignment/warning_{name}": 1.0})
        if dist.get_global_rank() == 0:
            _log.warning("alignment: %s", text)


def relative_entropy(weight_GT: Sequence[Sequence[float | None]]) -> float | None:
    """Mean entropy over the t-bins that saw pictures, as a share of that of equal weights; None
    where no bin did.
    """
    columns = [column for column in zip(*weight_GT, strict=True) if column[0] is not None]
    if not columns:
        return None
    entropies = [-sum(w * math.log(w) for w in column if w) for column in columns]
    return min(1.0, sum(entropies) / len(entropies) / math.log(len(weight_GT)))
