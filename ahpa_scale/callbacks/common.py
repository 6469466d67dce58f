# SPDX-License-Identifier: Apache-2.0
"""What the callbacks share: which rank writes, the model in its wrapper, the router's summary."""

from __future__ import annotations

from typing import Any

from composer.utils import dist
from torch import nn


def writes_files() -> bool:
    """Whether this is the run's one process that writes and prints."""
    return bool(dist.get_global_rank() == 0)


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DDP, or the model itself."""
    inner = getattr(model, "module", model)
    assert isinstance(inner, nn.Module)
    return inner


def router_summary(model: nn.Module) -> dict[str, Any] | None:
    """The last summary of the first attachment that routes between levels; None without one.

    Returns:
        ``levels`` (G names), ``weight_GT`` and ``loss_GT`` (None in t-bins without pictures) and
        ``count_T``, for T equal bins of the noise level t in [0, 1].
    """
    attachments = getattr(unwrap(model), "attachments", None)
    for attachment in attachments.children() if isinstance(attachments, nn.Module) else ():
        read = getattr(attachment, "summary", None)
        summary: dict[str, Any] | None = read() if callable(read) else None
        if summary and "weight_GT" in summary and any(summary["count_T"]):
            return dict(summary)
    return None
