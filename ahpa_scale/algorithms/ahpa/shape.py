# SPDX-License-Identifier: Apache-2.0
"""What the alignment of one backbone looks like: its groups, their blocks, grids, channels and
whitening.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from torch import Tensor

from ahpa_scale.errors import UserError
from ahpa_scale.level_names import source_of
from ahpa_scale.method import Whitening, whitening
from ahpa_scale.models.backbone import Backbone

Groups = Mapping[str, Sequence[str]]
ValueT = TypeVar("ValueT")


def per_group(
    what: str, chosen: Mapping[str, ValueT], groups: Groups, default: ValueT
) -> list[ValueT]:
    """One value per group, in their order; the default for those that `chosen` does not name.

    Raises:
        UserError: a name that is no group.
    """
    unknown = next((name for name in chosen if name not in groups), None)
    if unknown is not None:
        raise UserError(f"{what} names the group {unknown!r}; there are {', '.join(groups)}")
    return [chosen.get(name, default) for name in groups]


def made_channels(groups: Groups, taps: Sequence[int], backbone: Backbone) -> dict[str, int]:
    """Channels of each level that is made in each step, such as the backbone's width for
    ``self.<k>``.

    Raises:
        UserError: a block of the moving average that does not lie behind the group's own.
    """
    channels = {}
    for levels, tap in zip(groups.values(), taps, strict=True):
        for level, source in zip(levels, map(source_of, levels), strict=True):
            if source.averaged and not tap < (source.number(level) or 0) <= backbone.depth:
                first, last = min(tap + 1, backbone.depth), backbone.depth
                raise UserError(
                    f"the level {level!r} must be a block behind the one it is aligned with: "
                    f"{source.level(first)} to {source.level(last)}"
                )
            if source.channels is not None:
                channels[level] = source.channels(backbone)
    return channels


def build_whitening(
    groups: Groups, channels: Mapping[str, int], dims: int, statistics: Mapping[str, Tensor]
) -> dict[str, Whitening]:
    """A whitening of each level of the groups.

    Args:
        groups: group name -> its levels.
        channels: level -> its channels.
        dims: dimensions kept of each.
        statistics: ``<level>.mean`` ``[C]`` and ``<level>.covariance`` ``[C, C]``.

    Raises:
        UserError: a level without statistics, or with those of another width.
    """
    built = {}
    for level in (name for levels in groups.values() for name in levels):
        mean_C = statistics.get(f"{level}.mean")
        if mean_C is None:
            known = [key.removesuffix(".mean") for key in statistics if key.endswith(".mean")]
            raise UserError(
                f"whiten needs the data set's statistics of {level!r}; it has those of "
                f"{', '.join(known) or 'no level'}"
            )
        if mean_C.numel() != channels[level]:
            raise UserError(
                f"the data set's statistics of {level!r} have {mean_C.numel()} channels, and the "
                f"target has {channels[level]}"
            )
        built[level] = Whitening(*whitening(mean_C, statistics[f"{level}.covariance"], dims))
    return built
