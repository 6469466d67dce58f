# SPDX-License-Identifier: Apache-2.0
"""Checks of alignment keys that refer to groups, or that need one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ahpa_scale.config.errors import ConfigError, choices
from ahpa_scale.config.schema import Config
from ahpa_scale.level_names import is_self_level


def check_remedies(config: Config, groups: Mapping[str, Sequence[str]] | None) -> None:
    """Check blocks and grids per group, whitening, the window, and the router's ceiling.

    Args:
        config: the configuration.
        groups: group name -> its levels; None while they are unknown, which leaves names
            unchecked.

    Raises:
        ConfigError: the first mistake found.
    """
    chosen = config.alignment
    if chosen.kind == "none":
        return
    if chosen.router.ceiling == "same_t" and chosen.router.gap_map is None:
        problem = "'same_t' compares blocks, which only alignment.router.gap_map knows; name one"
        raise _error(config, "alignment.router.ceiling", problem)
    if chosen.window is not None and not 0 <= chosen.window[0] < chosen.window[1] <= 1:
        problem = "must be two noise levels, 0 <= lowest < highest <= 1"
        raise _error(config, "alignment.window", problem)
    if groups is None:
        return
    for key, value in (("alignment.tap", chosen.tap), ("alignment.grid", chosen.grid)):
        for name in value if isinstance(value, dict) else ():
            if name not in groups:
                problem = f"no group {name!r}; {choices(name, list(groups))}"
                raise _error(config, f"{key}.{name}", problem)
    _check_grids(config)
    if chosen.whiten is not None:
        _check_whitening(config, [level for levels in groups.values() for level in levels])


def _check_grids(config: Config) -> None:
    full = config.model.geometry().grid
    for name, side in (config.alignment.grid or {}).items():
        key = f"alignment.grid.{name}"
        if side > full:
            raise _error(config, key, f"{side} is finer than the backbone's {full}x{full} tokens")
        if side == 1 and config.alignment.spatial_norm == 1:
            problem = "1 keeps only the token mean, which alignment.spatial_norm 1 removes"
            raise _error(config, key, problem)


def _check_whitening(config: Config, levels: Sequence[str]) -> None:
    own = next((level for level in levels if is_self_level(level)), None)
    if own is not None:
        problem = f"{own!r} changes as it trains and has no statistics of a data set; set it to "
        raise _error(config, "alignment.whiten", problem + "null, or align other levels")


def _error(config: Config, key: str, problem: str) -> ConfigError:
    return ConfigError(config.source_of(key), key, problem)
