# SPDX-License-Identifier: Apache-2.0
"""What AHPA aligns: the choices of one alignment, and the auxiliary module built from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ahpa_scale.algorithms.ahpa.kinds import KINDS, filled, kind_groups, self_groups
from ahpa_scale.algorithms.ahpa.shape import (
    build_whitening,
    made_channels,
    per_group,
)
from ahpa_scale.errors import UserError
from ahpa_scale.level_names import ENCODER, source_of
from ahpa_scale.method import (
    AlignmentSettings,
    AlignmentShape,
    DynamicRouter,
    GapMap,
    PriorAlignment,
    ScheduledRouter,
    UniformRouter,
)
from ahpa_scale.models.backbone import Backbone
from ahpa_scale.models.vae_config import default_groups


class Design:
    """The choices of one alignment; they become a module once the backbone is known.

    Args:
        levels: name -> channels of every prior level that the batches bring, fine to coarse.
        settings: what is aligned and how.
        statistics: what whitening needs: ``<level>.mean`` and ``<level>.covariance``.
        gap_map: what the router's objective ``gap`` follows; None measures the gap while training.

    Attributes:
        settings: with the kind's defaults in place of None.
        groups: filled by :meth:`build` for kind ``self``.
        tap: filled by :meth:`build` where it was None.

    Raises:
        UserError: unknown kind, a group that names a level which the batches don't bring, or
            settings that exclude one another.
    """

    def __init__(
        self,
        levels: Mapping[str, int],
        settings: AlignmentSettings,
        *,
        statistics: Mapping[str, Tensor] | None = None,
        gap_map: GapMap | None = None,
    ) -> None:
        self.settings = filled(settings)
        self.channels = dict(levels)
        # The groups of kind self depend on the backbone's depth: `build` fills them.
        self.groups: dict[str, tuple[str, ...]] = {}
        if settings.groups or settings.kind != "self":
            fixed = KINDS[settings.kind].level is not None
            chosen = settings.groups or ({} if fixed else default_groups(self._encoder_levels()))
            self.groups = kind_groups(settings.kind, chosen, settings.level)
        self._check_levels()
        self.tap = settings.tap
        self._statistics = dict(statistics or {})
        self._gap_map = gap_map

    def _encoder_levels(self) -> list[str]:
        return [name for name in self.channels if source_of(name) == ENCODER]

    def _check_levels(self) -> None:
        for name in (name for levels in self.groups.values() for name in levels):
            source = source_of(name)
            if self.settings.whiten is not None and not source.statistics:
                why = "changes as it trains" if source.averaged else "has none"
                raise UserError(f"whiten needs statistics, and {name!r} {why}")
            if name not in self.channels and source.channels is None:
                raise UserError(
                    f"kind {self.settings.kind!r} aligns the level {name!r}, "
                    f"but the batches bring {', '.join(self.channels) or 'none'}"
                )

    def build(self, backbone: Backbone) -> PriorAlignment:
        """Builds the auxiliary for this backbone's depth, width and token grid.

        Raises:
            UserError: a group, block, grid or level that this backbone or the data don't have.
        """
        settings = self.settings
        default_tap = KINDS[settings.kind].tap(backbone.depth)
        if self.tap is None:
            self.tap = default_tap
        deepest = max(self.tap.values()) if isinstance(self.tap, Mapping) else self.tap
        self.groups = self.groups or self_groups(backbone.depth, deepest)
        if isinstance(self.tap, Mapping):
            blocks = per_group("tap", self.tap, self.groups, default_tap)
        else:
            blocks = [self.tap] * len(self.groups)
        channels = {**self.channels, **made_channels(self.groups, blocks, backbone)}
        whitening = {}
        if settings.whiten is not None:
            whitening = build_whitening(self.groups, channels, settings.whiten, self._statistics)
            channels.update({level: whitened.dims for level, whitened in whitening.items()})
        shape = AlignmentShape(
            width=backbone.width,
            grid=backbone.grid,
            groups=self.groups,
            channels={g: sum(map(channels.__getitem__, ls)) for g, ls in self.groups.items()},
            taps=blocks if isinstance(self.tap, Mapping) else None,
            grids=per_group("grid", settings.grid or {}, self.groups, backbone.grid),
        )
        gap = None
        if self._gap_map is not None:
            gap = self._gap_map.gap(self.groups, blocks)
        return PriorAlignment(
            shape, settings, router=self._build_router(), whitening=whitening, gap=gap
        )

    def _build_router(self) -> nn.Module:
        settings, count = self.settings, len(self.groups)
        router = KINDS[settings.kind].router
        if router == "dynamic":
            return DynamicRouter(count, **settings.router.network())
        if router == "scheduled":
            return ScheduledRouter(count, settings.sharpness, settings.reverse)
        return UniformRouter(count)

    def shape(self) -> dict[str, Any]:
        """What a run and the checkpoint it resumes must agree on, as plain values."""
        grid = self.settings.grid
        return {
            "kind": self.settings.kind,
            "tap": self.tap,
            "groups": {k: list(v) for k, v in self.groups.items()},
            "grid": None if grid is None else dict(grid),
        }
