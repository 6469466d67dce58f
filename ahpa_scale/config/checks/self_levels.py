# SPDX-License-Identifier: Apache-2.0
"""Levels ``self.<k>``: blocks of the model's own moving average, checked against its depth, its
taps and the EMA.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ahpa_scale.config.defaults import default_tap
from ahpa_scale.config.errors import ConfigError
from ahpa_scale.config.schema import Alignment, Config
from ahpa_scale.level_names import is_self_level, self_block, self_level


def aligns_own_blocks(alignment: Alignment) -> bool:
    """Whether a level ``self.<k>`` is a target, whichever key names it."""
    if alignment.kind == "self":
        return True
    named = [alignment.level or "", *(alignment.levels or ())]
    named += [level for group in (alignment.groups or {}).values() for level in group]
    return alignment.kind != "none" and any(is_self_level(name) for name in named)


def check_block(config: Config, key: str, level: str) -> None:
    """Check that a self level names an existing block.

    Raises:
        ConfigError: it does not.
    """
    depth = config.model.geometry().depth
    block = self_block(level)
    if block is None or not 1 <= block <= depth:
        last = self_level(depth)
        problem = f"{level!r} is no block of {depth}; choose one of {self_level(1)} to {last}"
        raise _error(config, key, problem)


def check_self_groups(config: Config, groups: Mapping[str, Sequence[str]]) -> None:
    """Check every self level of every group: the EMA is kept, and the block lies behind the tap.

    Args:
        config: the configuration.
        groups: group name -> its levels.

    Raises:
        ConfigError: the first mistake found.
    """
    depth = config.model.geometry().depth
    for group, levels in groups.items():
        tap = tap_of(config, group)
        for level in filter(is_self_level, levels):
            if not config.ema.enabled:
                problem = f"{level!r} is a block of the moving average; set it to true"
                raise _error(config, "ema.enabled", problem)
            if (self_block(level) or 0) <= tap:
                behind = f"{self_level(tap + 1)} to {self_level(depth)}"
                behind = behind if tap < depth else "an earlier tap"
                problem = f"{level!r} does not lie behind block {tap}, which is aligned; choose "
                raise _error(config, level_key(config), problem + behind)


def tap_of(config: Config, group: str) -> int:
    """The block that a group aligns: as configured, or the kind's default."""
    tap, kind = config.alignment.tap, config.alignment.kind
    if isinstance(tap, dict):
        tap = tap.get(group)
    return tap or default_tap(kind, config.model.geometry().depth)


def level_key(config: Config) -> str:
    """The key that asks for the levels."""
    alignment = config.alignment
    if alignment.kind == "single":
        return "alignment.level"
    if alignment.groups is not None:
        return "alignment.groups"
    if alignment.levels is not None:
        return "alignment.levels"
    return "alignment.kind" if alignment.kind in ("repa", "self") else "alignment.levels"


def _error(config: Config, key: str, problem: str) -> ConfigError:
    return ConfigError(config.source_of(key), key, problem)
