# SPDX-License-Identifier: Apache-2.0
"""What a run aligns with: the targets of its alignment section, resolved and checked in one place
and handed to whoever needs them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ahpa_scale.algorithms.ahpa import KINDS, self_groups
from ahpa_scale.config.checks.levels import check_named_levels, check_single, check_targets
from ahpa_scale.config.defaults import default_tap
from ahpa_scale.config.errors import config_error
from ahpa_scale.config.schema import Alignment, Config
from ahpa_scale.errors import UserError
from ahpa_scale.level_names import OWN_BLOCKS, LevelSource, source_of
from ahpa_scale.models.vae_config import default_groups

Groups = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Targets:
    """The targets of one run; without alignment there are none.

    Attributes:
        groups: group name -> its levels, fine to coarse.
        taps: group name -> the block that it aligns, 1-based.
        grids: group name -> tokens per side that it is compared on.
        key: the key that asks for the levels, for messages.
    """

    groups: Groups
    taps: Mapping[str, int]
    grids: Mapping[str, int]
    key: str

    @property
    def levels(self) -> tuple[str, ...]:
        """Every level, once."""
        return tuple(dict.fromkeys(level for levels in self.groups.values() for level in levels))

    @property
    def stored(self) -> tuple[str, ...]:
        """The levels that a data set's columns or the VAE must provide; a source makes the rest."""
        return tuple(level for level in self.levels if source_of(level).channels is None)


def resolve_targets(config: Config, available: Sequence[str] | None) -> Targets | None:
    """Resolves and checks the targets.

    Args:
        config: the configuration.
        available: the encoder levels of the VAE, fine to coarse; None while they are unknown.

    Returns:
        The targets; None if they depend on levels that are unknown.

    Raises:
        ConfigError: the first mistake found.
    """
    chosen, geometry = config.alignment, config.model.geometry()
    if chosen.kind == "none":
        return Targets({}, {}, {}, "alignment.kind")
    groups = _groups(config, available)
    if groups is None:
        return None
    tap, default = chosen.tap, default_tap(chosen.kind, geometry.depth)
    blocks = tap if isinstance(tap, dict) else dict.fromkeys(groups, tap or default)
    targets = Targets(
        groups=groups,
        taps={name: blocks.get(name, default) for name in groups},
        grids={name: (chosen.grid or {}).get(name, geometry.grid) for name in groups},
        key=_level_key(chosen),
    )
    check_targets(config, targets)
    return targets


def named_sources(alignment: Alignment) -> set[LevelSource]:
    """The sources of the levels that the section names, before they are resolved or checked."""
    if alignment.kind == "none":
        return set()
    named = [alignment.level or "", *(alignment.levels or ())]
    named += [level for levels in (alignment.groups or {}).values() for level in levels]
    own = {OWN_BLOCKS} if alignment.kind == "self" else set()
    return own | {source_of(level) for level in named}


def _groups(config: Config, available: Sequence[str] | None) -> Groups | None:
    chosen, fixed = config.alignment, KINDS[config.alignment.kind].level
    if fixed is not None:
        return {fixed: (fixed,)}
    check_named_levels(config, available)
    # While the VAE is unknown, only the groups of kind self are known.
    known = available is not None or chosen.kind == "self"
    groups = _all_groups(config, available or ()) if known else None
    if chosen.kind != "single":
        return groups
    level = check_single(config, available, groups)
    return None if groups is None else {level: groups.get(level, (level,))}


def _all_groups(config: Config, available: Sequence[str]) -> Groups:
    chosen = config.alignment
    if chosen.groups is not None:
        return dict(chosen.groups)
    if chosen.kind == "self" and chosen.levels is None:
        return _default_self_groups(config)
    levels = chosen.levels or available
    # Neighbouring encoder levels belong together in a group; numbered levels do not.
    alone = [level for level in levels if source_of(level).unit]
    others = [level for level in levels if level not in alone]
    return {**(default_groups(others) if others else {}), **{level: (level,) for level in alone}}


def _default_self_groups(config: Config) -> Groups:
    depth, tap = config.model.geometry().depth, config.alignment.tap
    named = list(tap.values()) if isinstance(tap, dict) else [tap] if tap else []
    try:
        return self_groups(depth, max(named, default=default_tap("self", depth)))
    except UserError as error:
        raise config_error(config, "alignment.kind", str(error)) from None


def _level_key(alignment: Alignment) -> str:
    if alignment.kind == "single":
        return "alignment.level"
    if alignment.groups is not None:
        return "alignment.groups"
    by_kind = alignment.levels is None and alignment.kind in ("repa", "self")
    return "alignment.kind" if by_kind else "alignment.levels"
