# SPDX-License-Identifier: Apache-2.0
"""Checks of the levels and groups that the alignment section names, and of the targets that they
resolve to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ahpa_scale.config.errors import choices, config_error
from ahpa_scale.config.schema import Config
from ahpa_scale.config.schema.alignment import ROUTED_KINDS
from ahpa_scale.level_names import ENCODER, OWN_BLOCKS, SOURCES, single_levels, source_of
from ahpa_scale.models.vae_config import encoder_levels

if TYPE_CHECKING:
    from ahpa_scale.config.targets import Groups, Targets


def known_levels(vae_config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of a VAE's encoder levels, fine to coarse."""
    return tuple(level.name for level in encoder_levels(vae_config))


def check_named_levels(config: Config, available: Sequence[str] | None) -> None:
    """Check the alignment's `levels` and `groups` as they are written.

    Args:
        config: the configuration, of a kind that reads them.
        available: the encoder levels of the VAE, fine to coarse; None while they are unknown, which
            leaves their names unchecked.

    Raises:
        ConfigError: the first mistake found.
    """
    _check_levels(config, available)
    _check_groups(config, available)


def check_single(config: Config, available: Sequence[str] | None, groups: Groups | None) -> str:
    """Check and return the group or level that kind single aligns.

    Args:
        config: the configuration, of kind single.
        available: the encoder levels of the VAE, fine to coarse; None while they are unknown.
        groups: all groups that may be chosen; None while the VAE is unknown.

    Raises:
        ConfigError: the first mistake found.
    """
    chosen, level = config.alignment, config.alignment.level
    if level is None:
        problem = "alignment.kind=single needs one group or level, such as alignment.level=latent"
        raise config_error(config, "alignment.level", problem)
    if available is not None and groups is not None:
        _check_number(config, "alignment.level", level)
        options = (*groups, *available, *single_levels())
        if level not in options and not source_of(level).unit:
            problem = f"no group or level {level!r}; {choices(level, options)}"
            raise config_error(config, "alignment.level", problem)
        for key, value in (("levels", chosen.levels), ("groups", chosen.groups)):
            if value is not None and groups.get(level, (level,)) == (level,):
                problem = "would have no effect: alignment.level names a level and no group"
                raise config_error(config, f"alignment.{key}", problem)
    _check_online(config, "alignment.level", [level])
    return level


def check_targets(config: Config, targets: Targets) -> None:
    """Check resolved targets: what their sources need, the router's limits, blocks and grids of
    groups, and whitening.

    Raises:
        ConfigError: the first mistake found.
    """
    _check_online(config, targets.key, targets.levels)
    _check_count(config, len(targets.groups))
    for group, levels in targets.groups.items():
        _check_averaged(config, targets.key, levels, targets.taps[group])
    for key, value in (("tap", config.alignment.tap), ("grid", config.alignment.grid)):
        for name in value if isinstance(value, dict) else ():
            if name not in targets.groups:
                problem = f"no group {name!r}; {choices(name, list(targets.groups))}"
                raise config_error(config, f"alignment.{key}.{name}", problem)
    _check_grids(config, targets.grids)
    if config.alignment.whiten is not None:
        _check_whitening(config, targets.levels)


def _check_levels(config: Config, available: Sequence[str] | None) -> None:
    levels = config.alignment.levels
    if levels is None:
        return
    _check_names(config, "alignment.levels", levels, available)
    twice = [name for name in levels if levels.count(name) > 1]
    if twice:
        raise config_error(config, "alignment.levels", f"{twice[0]!r} is named twice")
    _check_order(config, "alignment.levels", list(levels), available)


def _check_groups(config: Config, available: Sequence[str] | None) -> None:
    groups, levels = config.alignment.groups, config.alignment.levels
    if groups is None:
        return
    if not groups:
        raise config_error(config, "alignment.groups", "must name at least one group")
    owner: dict[str, str] = {}
    for group, members in groups.items():
        key = f"alignment.groups.{group}"
        if source_of(group) != ENCODER:
            problem = f"{group!r} is the name of a level; call the group otherwise"
            raise config_error(config, key, problem)
        _check_names(config, key, members, available, listed=levels)
        for name in members:
            if name in owner:
                raise config_error(config, key, f"{name!r} is in the group {owner[name]!r} already")
            owner[name] = group
    idle = [name for name in levels or () if name not in owner]
    if idle:
        problem = f"{idle[0]!r} is in none of alignment.groups"
        raise config_error(config, "alignment.levels", problem)
    _check_order(config, "alignment.groups", [members[0] for members in groups.values()], available)


def _check_names(
    config: Config,
    key: str,
    names: Sequence[str],
    available: Sequence[str] | None,
    listed: Sequence[str] | None = None,
) -> None:
    """Every name must be in alignment.levels, if that is listed, else be an existing level."""
    for name in names:
        _check_number(config, key, name)
    if config.alignment.kind == "self" and any(source_of(name) != OWN_BLOCKS for name in names):
        problem = "alignment.kind self aligns self.<block> alone; alignment.kind=ahpa mixes levels"
        raise config_error(config, key, problem)
    where, options, others = "alignment.levels has", listed, names
    if options is None and available is not None:
        where, options = "there is", (*available, *single_levels())
        others = [name for name in names if not source_of(name).unit]
    unknown = [name for name in others if options is not None and name not in options]
    if options is not None and unknown:
        raise config_error(
            config, key, f"{where} no {unknown[0]!r}; {choices(unknown[0], options)}"
        )
    _check_online(config, key, names)


def _check_number(config: Config, key: str, level: str) -> None:
    source = source_of(level)
    names = source.levels(config.model.geometry().depth)
    if source.unit and level not in names:
        problem = f"{level!r} is no {source.unit} of {len(names)}; choose one of "
        raise config_error(config, key, f"{problem}{names[0]} to {names[-1]}")


def _check_online(config: Config, key: str, names: Sequence[str]) -> None:
    for source in map(source_of, names if config.data.online else ()):
        if not source.online:
            problem = f"{source.name} features exist only in a prepared data set, and data.online "
            raise config_error(config, key, f"{problem}is true")


def _check_order(
    config: Config, key: str, names: Sequence[str], available: Sequence[str] | None
) -> None:
    """The SNR prior and the schedule rely on the order from fine to coarse."""
    problem = "must run from fine to coarse"
    places = [available.index(name) for name in names if name in available] if available else []
    if places != sorted(places):
        raise config_error(config, key, f"{problem}, as the encoder does")
    for source in SOURCES.values():
        numbers = [number for number in map(source.number, names) if number is not None]
        if numbers != sorted(numbers):
            raise config_error(
                config, key, f"{problem}: {source.name} levels by their {source.unit}"
            )


def _check_count(config: Config, count: int) -> None:
    """The router's limits depend on the number of groups."""
    router = config.alignment.router
    if config.alignment.kind not in ROUTED_KINDS:
        return
    if router.top_k is not None and router.top_k > count:
        problem = f"{router.top_k} is more than the {count} groups"
        raise config_error(config, "alignment.router.top_k", problem)
    if router.floor is not None and router.floor * count >= 1:
        problem = (
            f"{router.floor} for each of {count} groups leaves nothing to route; stay "
            f"below {1 / count:.3g}"
        )
        raise config_error(config, "alignment.router.floor", problem)


def _check_averaged(config: Config, key: str, levels: Sequence[str], tap: int) -> None:
    """Levels of the moving average need it, and lie behind the block that is aligned."""
    depth = config.model.geometry().depth
    for level in levels:
        source = source_of(level)
        if not source.averaged:
            continue
        if config.ema.decay is None:
            problem = f"{level!r} is a {source.unit} of the moving average; set a number or a time"
            raise config_error(config, "ema.decay", problem)
        if (source.number(level) or 0) <= tap:
            behind = f"{source.level(tap + 1)} to {source.level(depth)}"
            behind = behind if tap < depth else "an earlier tap"
            problem = f"{level!r} does not lie behind block {tap}, which is aligned; choose "
            raise config_error(config, key, problem + behind)


def _check_grids(config: Config, grids: Mapping[str, int]) -> None:
    full = config.model.geometry().grid
    for name, side in grids.items():
        key = f"alignment.grid.{name}"
        if side > full:
            raise config_error(
                config, key, f"{side} is finer than the backbone's {full}x{full} tokens"
            )
        if side == 1 and config.alignment.spatial_norm == 1:
            problem = "1 keeps only the token mean, which alignment.spatial_norm 1 removes"
            raise config_error(config, key, problem)


def _check_whitening(config: Config, levels: Sequence[str]) -> None:
    for level in levels:
        source = source_of(level)
        if not source.statistics:
            why = "changes as it trains and has" if source.averaged else "has"
            problem = f"{level!r} {why} no statistics of a data set; set it to null, or align other"
            raise config_error(config, "alignment.whiten", f"{problem} levels")
