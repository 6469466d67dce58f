# SPDX-License-Identifier: Apache-2.0
"""The plug-ins that make up a parallel engine: sharding, and the clipping that goes with it."""

from __future__ import annotations

from typing import Any

from composer.core import Algorithm

from ahpa_scale.algorithms.fully_shard import FullyShard
from ahpa_scale.algorithms.grad_clip import GradClip
from ahpa_scale.algorithms.zero import ZeRO, ZeroSettings
from ahpa_scale.errors import UserError


def engine_algorithms(
    engine: str,
    *,
    max_norm: float | None = None,
    log_interval: str = "50ba",
    replicate_degree: int = 1,
    **options: Any,
) -> list[Algorithm]:
    """Builds an engine's plug-ins. They go before those that follow the weights (EMA).

    Args:
        engine: ``ddp``, ``fsdp2``, ``hsdp``, ``zero1``, ``zero2`` or ``zero3``.
        max_norm: bound of the gradient norm of the backbone, and of each attachment; None only
            measures them.
        log_interval: see :class:`GradClip`.
        replicate_degree: copies of the sharded model, for ``hsdp``.
        options: of :class:`FullyShard` or :class:`ZeroSettings`.

    Raises:
        UserError: there is no such engine.
    """
    if engine in ("zero1", "zero2", "zero3"):
        settings = ZeroSettings(stage=int(engine[-1]), **options)
        return [ZeRO(settings, max_norm=max_norm, log_interval=log_interval)]
    clip = GradClip(max_norm, log_interval)
    if engine == "ddp":
        return [clip]
    if engine == "fsdp2":
        return [FullyShard(**options), clip]
    if engine == "hsdp":
        return [FullyShard(replicate_degree=replicate_degree, **options), clip]
    raise UserError(f"there is no engine {engine!r}")
