# SPDX-License-Identifier: Apache-2.0
"""Finds the levels and groups that the alignment section names, and checks them against the
VAE.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ahpa_scale.algorithms.ahpa import self_groups
from ahpa_scale.config.checks.self_levels import check_block, check_self_groups
from ahpa_scale.config.defaults import default_tap
from ahpa_scale.config.errors import ConfigError, choices
from ahpa_scale.config.schema import Config
from ahpa_scale.config.schema.alignment import LEVEL_KINDS, ROUTED_KINDS
from ahpa_scale.errors import UserError
from ahpa_scale.level_names import EXTERNAL, LATENT, is_self_level, self_block
from ahpa_scale.models.vae_config import default_groups, encoder_levels

Groups = dict[str, tuple[str, ...]]


def known_levels(vae_config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of a VAE's encoder levels, fine to coarse."""
    return tuple(level.name for level in encoder_levels(vae_config))


def alignment_groups(config: Config, available: Sequence[str]) -> Groups:
    """The targets of this run: group name -> its levels, fine to coarse; empty without alignment.

    Args:
        config: a checked configuration.
        available: the encoder levels of the VAE, fine to coarse.

    Raises:
        ConfigError: a level, group or combination that does not exist.
    """
    kind, chosen = config.alignment.kind, config.alignment
    if kind == "none":
        return {}
    if kind in (LATENT, "repa"):
        name = LATENT if kind == LATENT else EXTERNAL
        return {name: (name,)}
    check_level_names(config, available)
    groups = _groups(config, available)
    if kind == "single":
        assert chosen.level is not None
        return {chosen.level: groups.get(chosen.level, (chosen.level,))}
    return groups


def stored_levels(groups: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The levels of `groups` that a data set's columns or a VAE must provide, each once."""
    named = dict.fromkeys(level for levels in groups.values() for level in levels)
    return tuple(level for level in named if level != LATENT and not is_self_level(level))


def _groups(config: Config, available: Sequence[str]) -> Groups:
    chosen = config.alignment
    if chosen.groups is not None:
        return dict(chosen.groups)
    if chosen.kind == "self" and chosen.levels is None:
        return _default_self_groups(config)
    levels = chosen.levels or available
    own = [level for level in levels if is_self_level(level)]
    others = [level for level in levels if level not in own]
    # Neighbouring encoder levels belong together in a group; blocks of the model do not.
    return {**(default_groups(others) if others else {}), **{level: (level,) for level in own}}


def _default_self_groups(config: Config) -> Groups:
    depth, tap = config.model.geometry().depth, config.alignment.tap
    named = list(tap.values()) if isinstance(tap, dict) else [tap] if tap else []
    try:
        return self_groups(depth, max(named, default=default_tap("self", depth)))
    except UserError as error:
        raise _error(config, "alignment.kind", str(error)) from None


def check_level_names(config: Config, available: Sequence[str] | None) -> None:
    """Check every level and group that the alignment section names.

    Args:
        config: the configuration.
        available: the encoder levels of the VAE, fine to coarse; None while they are unknown, which
            leaves the names of levels unchecked.

    Raises:
        ConfigError: the first mistake found.
    """
    kind = config.alignment.kind
    if kind == "repa":
        _check_external(config, "alignment.kind", [EXTERNAL])
    if kind not in LEVEL_KINDS:
        return
    _check_levels(config, available)
    _check_groups(config, available)
    if kind == "single":
        _check_single(config, available)
    # While the VAE is unknown, only the groups of kind self are known.
    if available is None and kind != "self":
        return
    groups = _groups(config, available or ())
    if kind == "single":
        assert config.alignment.level is not None
        level = config.alignment.level
        groups = {level: groups.get(level, (level,))}
    _check_count(config, len(groups))
    check_self_groups(config, groups)


def _check_levels(config: Config, available: Sequence[str] | None) -> None:
    levels = config.alignment.levels
    if levels is None:
        return
    _check_names(config, "alignment.levels", levels, available)
    twice = [name for name in levels if levels.count(name) > 1]
    if twice:
        raise _error(config, "alignment.levels", f"{twice[0]!r} is named twice")
    _check_order(config, "alignment.levels", list(levels), available)


def _check_groups(config: Config, available: Sequence[str] | None) -> None:
    groups, levels = config.alignment.groups, config.alignment.levels
    if groups is None:
        return
    if not groups:
        raise _error(config, "alignment.groups", "must name at least one group")
    owner: dict[str, str] = {}
    for group, members in groups.items():
        key = f"alignment.groups.{group}"
        if group in (LATENT, EXTERNAL) or is_self_level(group):
            raise _error(config, key, f"{group!r} is the name of a level; call the group otherwise")
        _check_names(config, key, members, available, listed=levels)
        for name in members:
            if name in owner:
                raise _error(config, key, f"{name!r} is in the group {owner[name]!r} already")
            owner[name] = group
    idle = [name for name in levels or () if name not in owner]
    if idle:
        raise _error(config, "alignment.levels", f"{idle[0]!r} is in none of alignment.groups")
    _check_order(config, "alignment.groups", [members[0] for members in groups.values()], available)


def _check_single(config: Config, available: Sequence[str] | None) -> None:
    chosen = config.alignment
    if chosen.level is None:
        problem = "alignment.kind=single needs one group or level, such as alignment.level=latent"
        raise _error(config, "alignment.level", problem)
    if available is None:
        # The groups follow from the levels; both are checked once the data set is known.
        _check_external(config, "alignment.level", [chosen.level])
        return
    groups, levels = _groups(config, available), (*available, LATENT, EXTERNAL)
    if is_self_level(chosen.level):
        check_block(config, "alignment.level", chosen.level)
        levels = (*levels, chosen.level)
    if chosen.level not in (*groups, *levels):
        problem = f"no group or level {chosen.level!r}; {choices(chosen.level, (*groups, *levels))}"
        raise _error(config, "alignment.level", problem)
    alone = (chosen.level,)
    for key, value in (("levels", chosen.levels), ("groups", chosen.groups)):
        if value is not None and groups.get(chosen.level, alone) == alone:
            problem = "would have no effect: alignment.level names a level and no group"
            raise _error(config, f"alignment.{key}", problem)
    _check_external(config, "alignment.level", groups.get(chosen.level, (chosen.level,)))


def _check_count(config: Config, count: int) -> None:
    """The router's limits depend on the number of groups."""
    router = config.alignment.router
    if config.alignment.kind not in ROUTED_KINDS:
        return
    if router.top_k is not None and router.top_k > count:
        raise _error(
            config, "alignment.router.top_k", f"{router.top_k} is more than the {count} groups"
        )
    if router.floor is not None and router.floor * count >= 1:
        problem = (
            f"{router.floor} for each of {count} groups leaves nothing to route; stay "
            f"below {1 / count:.3g}"
        )
        raise _error(config, "alignment.router.floor", problem)


def _check_names(
    config: Config,
    key: str,
    names: Sequence[str],
    available: Sequence[str] | None,
    listed: Sequence[str] | None = None,
) -> None:
    """Every name must be in alignment.levels, if that is listed, else be an existing level."""
    for name in filter(is_self_level, names):
        check_block(config, key, name)
    options = listed
    if options is None and available is not None:
        options = (*available, LATENT, EXTERNAL)
    others = names if listed is not None else [name for name in names if not is_self_level(name)]
    if config.alignment.kind == "self" and any(not is_self_level(name) for name in names):
        problem = "alignment.kind self aligns self.<block> alone; alignment.kind=ahpa mixes levels"
        raise _error(config, key, problem)
    unknown = [name for name in others if options is not None and name not in options]
    if options is not None and unknown:
        where = "alignment.levels has" if listed is not None else "there is"
        raise _error(config, key, f"{where} no {unknown[0]!r}; {choices(unknown[0], options)}")
    _check_external(config, key, names)


def _check_external(config: Config, key: str, names: Sequence[str]) -> None:
    if config.data.online and EXTERNAL in names:
        problem = "external features exist only in a prepared data set, and data.online is true"
        raise _error(config, key, problem)


def _check_order(
    config: Config, key: str, names: Sequence[str], available: Sequence[str] | None
) -> None:
    """The SNR prior and the schedule rely on the order from fine to coarse."""
    places = [available.index(name) for name in names if name in available] if available else []
    if places != sorted(places):
        raise _error(config, key, "must run from fine to coarse, as the encoder does")
    blocks = [block for block in map(self_block, names) if block is not None]
    if blocks != sorted(blocks):
        raise _error(config, key, "must run from fine to coarse: self levels by their block")


def _error(config: Config, key: str, problem: str) -> ConfigError:
    return ConfigError(config.source_of(key), key, problem)
