# SPDX-License-Identifier: Apache-2.0
"""The alignment section -> the plug-in, with the measurements that it names: the data set's
statistics and the recoverability map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ahpa_scale.algorithms.ahpa import AHPA, Release, read_gap_map
from ahpa_scale.config.checks.alignment import check_remedies
from ahpa_scale.config.checks.levels import alignment_groups
from ahpa_scale.config.defaults import default_tap
from ahpa_scale.config.errors import ConfigError
from ahpa_scale.config.schema import Config
from ahpa_scale.config.schema.alignment import ROUTED_KINDS
from ahpa_scale.data.card import DatasetCard, read_prior_statistics
from ahpa_scale.errors import UserError
from ahpa_scale.level_names import EXTERNAL
from ahpa_scale.method import GapMap

Groups = Mapping[str, Sequence[str]]


def build_alignment(config: Config, card: DatasetCard) -> AHPA:
    """Builds the alignment plug-in of any kind but ``none``.

    Raises:
        ConfigError: the recoverability map or the data set's statistics lack what is asked of them.
    """
    chosen = config.alignment
    channels = {level.name: level.channels for level in card.levels}
    if card.external_channels is not None:
        channels[EXTERNAL] = card.external_channels
    groups = alignment_groups(config, card.level_names)
    check_remedies(config, groups)
    router: dict[str, Any] = {}
    if chosen.kind in ROUTED_KINDS:
        names = {"objective", "prior_weight", "gap_map", "ceiling", "gap_strength"}
        router = chosen.router.model_dump(exclude=names)
    elif chosen.kind == "scheduled":
        router = {"reverse": chosen.reverse, "sharpness": chosen.sharpness}
    return AHPA(
        channels,
        kind=chosen.kind,
        groups=groups,
        level=chosen.level,
        weight=chosen.weight,
        gradient_ratio=chosen.gradient_ratio,
        tap=chosen.tap,
        grid=chosen.grid,
        start=chosen.start,
        until=chosen.until,
        ramp=chosen.ramp,
        release=None if chosen.release is None else Release(**chosen.release.model_dump()),
        loss=chosen.loss,
        smooth_l1_beta=chosen.smooth_l1_beta,
        token_weights=chosen.token_weights,
        spatial_norm=chosen.spatial_norm,
        whiten=chosen.whiten,
        statistics=_read_statistics(config, groups),
        head=chosen.head.kind,
        head_width=chosen.head.width,
        router=router,
        objective=chosen.router.objective,
        prior_weight=chosen.router.prior_weight,
        gap_map=_read_map(config, groups),
        ceiling=chosen.router.ceiling,
        gap_strength=chosen.router.gap_strength,
        window=None if chosen.window is None else (chosen.window[0], chosen.window[1]),
        self_lead=chosen.self_lead,
        placebo=chosen.placebo,
        num_bins=chosen.bins,
        log_interval=config.logging.router_interval,
        loss_interval=config.logging.interval,
    )


def _read_statistics(config: Config, groups: Groups) -> dict[str, Tensor] | None:
    """The data set's statistics of its prior levels, where whitening needs them.

    Raises:
        ConfigError: they are unreadable, or a level has none.
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
    """The recoverability map that objective gap follows, or None.

    Raises:
        ConfigError: it is unreadable, or lacks a level or a block of this run.
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
