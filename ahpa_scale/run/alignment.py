# SPDX-License-Identifier: Apache-2.0
"""The alignment section -> the plug-in, with the measurements it needs: the data set's statistics
and the recoverability map.
"""

from __future__ import annotations

from torch import Tensor

from ahpa_scale.algorithms.ahpa import AHPA, read_gap_map
from ahpa_scale.config.errors import config_error
from ahpa_scale.config.schema import Alignment, Config
from ahpa_scale.config.schema.alignment import MEASURED
from ahpa_scale.config.targets import Groups, Targets
from ahpa_scale.data.card import DatasetCard, read_prior_statistics
from ahpa_scale.errors import UserError
from ahpa_scale.method import (
    AlignmentSettings,
    GapMap,
    HeadSettings,
    Release,
    RouterSettings,
)


def build_alignment(config: Config, card: DatasetCard, targets: Targets) -> AHPA:
    """Builds the alignment plug-in for any kind except ``none``.

    Raises:
        ConfigError: the recoverability map or the data set's statistics lack what the run needs.
    """
    return AHPA(
        card.prior_channels,
        _settings(config.alignment, targets.groups),
        statistics=_read_statistics(config, targets),
        gap_map=_read_map(config, targets),
        log_interval=config.logging.router_interval,
        loss_interval=config.logging.interval,
    )


def _settings(chosen: Alignment, groups: Groups) -> AlignmentSettings:
    values = chosen.model_dump(exclude={"levels", "groups", "head", "router", "window"})
    release = None
    if chosen.until == MEASURED:
        assert chosen.ramp is not None, "fill_defaults has filled it"
        release = Release(ramp=chosen.ramp)
        values |= {"until": None, "ramp": None}
    router = chosen.router.model_dump(exclude={"gap_map"})
    return AlignmentSettings(
        **values,
        groups=groups,
        head=HeadSettings(**chosen.head.model_dump()),
        router=RouterSettings(**router),
        release=release,
        window=None if chosen.window is None else (chosen.window[0], chosen.window[1]),
    )


def _read_statistics(config: Config, targets: Targets) -> dict[str, Tensor] | None:
    """The data set's statistics of its prior levels; None without whitening.

    Raises:
        ConfigError: the statistics are unreadable, or lack a level.
    """
    if config.alignment.whiten is None:
        return None
    try:
        # Of several sets, the first one's: all are whitened alike.
        statistics = read_prior_statistics(config.data.places[0])
    except UserError as error:
        raise config_error(config, "alignment.whiten", str(error)) from None
    for level in targets.levels:
        if f"{level}.mean" not in statistics:
            problem = f"the data set has no statistics of {level!r}; prepare it again, or set null"
            raise config_error(config, "alignment.whiten", problem)
    return statistics


def _read_map(config: Config, targets: Targets) -> GapMap | None:
    """The recoverability map for objective ``gap``, or None.

    Raises:
        ConfigError: the map is unreadable, or lacks a level or a block of this run.
    """
    path = config.alignment.router.gap_map
    if path is None:
        return None
    try:
        gap_map = read_gap_map(path)
        gap_map.gap(targets.groups, list(targets.taps.values()))
    except UserError as error:
        raise config_error(config, "alignment.router.gap_map", str(error)) from None
    return gap_map
