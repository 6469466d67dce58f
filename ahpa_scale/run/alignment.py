# SPDX-License-Identifier: Apache-2.0
"""The alignment section -> the plug-in, with the measurements it needs: the data set's statistics
and the recoverability map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ahpa_scale.algorithms.ahpa import AHPA, read_gap_map
from ahpa_scale.config.checks.alignment import check_remedies
from ahpa_scale.config.checks.levels import alignment_groups
from ahpa_scale.config.defaults import default_tap
from ahpa_scale.config.errors import ConfigError
from ahpa_scale.config.schema import Alignment, Config
from ahpa_scale.data.card import DatasetCard, read_prior_statistics
from ahpa_scale.errors import UserError
from ahpa_scale.level_names import EXTERNAL
from ahpa_scale.method import (
    AlignmentSettings,
    GapMap,
    HeadSettings,
    Release,
    RouterSettings,
)

Groups = Mapping[str, Sequence[str]]


def build_alignment(config: Config, card: DatasetCard) -> AHPA:
    """Builds the alignment plug-in for any kind except ``none``.

    Raises:
        ConfigError: the recoverability map or the data set's statistics lack what the run needs.
    """
    chosen = config.alignment
    channels = {level.name: level.channels for level in card.levels}
    if card.external_channels is not None:
        channels[EXTERNAL] = card.external_channels
    groups = alignment_groups(config, card.level_names)
    check_remedies(config, groups)
    return AHPA(
        channels,
        _settings(chosen, groups),
        statistics=_read_statistics(config, groups),
        gap_map=_read_map(config, groups),
        log_interval=config.logging.router_interval,
        loss_interval=config.logging.interval,
    )


def _settings(chosen: Alignment, groups: Groups) -> AlignmentSettings:
    values = chosen.model_dump(exclude={"levels", "groups", "head", "router", "release", "window"})
    router = chosen.router.model_dump(exclude={"gap_map"})
    return AlignmentSettings(
        **values,
        groups=groups,
        head=HeadSettings(**chosen.head.model_dump()),
        router=RouterSettings(**router),
        release=None if chosen.release is None else Release(**chosen.release.model_dump()),
        window=None if chosen.window is None else (chosen.window[0], chosen.window[1]),
    )


def _read_statistics(config: Config, groups: Groups) -> dict[str, Tensor] | None:
    """The data set's statistics of its prior levels; None without whitening.

    Raises:
        ConfigError: the statistics are unreadable, or lack a level.
    """
    if config.alignment.whiten is None:
        return None
    url = config.data.remote or config.data.local
    assert url is not None, "check_static demands data.local"
    try:
        statistics = read_prior_statistics(url)
    except UserError as error:
        raise _error(config, "alignment.whiten", str(error)) from None
    for level in (one for levels in groups.values() for one in levels):
        if f"{level}.mean" not in statistics:
            problem = f"the data set has no statistics of {level!r}; prepare it again, or set null"
            raise _error(config, "alignment.whiten", problem)
    return statistics


def _read_map(config: Config, groups: Groups) -> GapMap | None:
    """The recoverability map for objective ``gap``, or None.

    Raises:
        ConfigError: the map is unreadable, or lacks a level or a block of this run.
    """
    path = config.alignment.router.gap_map
    if path is None:
        return None
    tap, default = config.alignment.tap, default_tap(config.alignment.kind, _depth(config))
    taps = tap if isinstance(tap, dict) else dict.fromkeys(groups, tap or default)
    try:
        found = read_gap_map(path)
        blocks = [taps.get(name, default) for name in groups]
        found.gap(groups, blocks, config.alignment.router.ceiling)
    except UserError as error:
        raise _error(config, "alignment.router.gap_map", str(error)) from None
    return found


def _depth(config: Config) -> int:
    return config.model.geometry().depth


def _error(config: Config, key: str, problem: str) -> ConfigError:
    return ConfigError(config.source_of(key), key, problem)
