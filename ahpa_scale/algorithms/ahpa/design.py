# SPDX-License-Identifier: Apache-2.0
"""What AHPA aligns: the choices of one alignment, and the auxiliary that they make for a DiT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from ahpa_scale.algorithms.ahpa.kinds import KINDS, ROUTERS, kind_groups
from ahpa_scale.algorithms.ahpa.shape import (
    build_whitening,
    default_self_groups,
    per_group,
    self_channels,
)
from ahpa_scale.errors import UserError
from ahpa_scale.level_names import EXTERNAL, LATENT, is_self_level
from ahpa_scale.method import (
    DynamicRouter,
    GapMap,
    Plateau,
    PriorAlignment,
    ScheduledRouter,
    UniformRouter,
)
from ahpa_scale.models.dit import DiT
from ahpa_scale.models.vae_config import default_groups


class Design:
    """The choices of one alignment; they become a module once the DiT is known.

    Args:
        levels: name -> channels of every prior level that the batches bring, fine to coarse.
        kind: ``ahpa``, ``uniform``, ``scheduled``, ``single``, ``latent``, ``repa`` or ``self``;
            sets the defaults of the rest.
        groups: group name -> its levels, fine to coarse; None groups the encoder's levels in up to
            three. Levels ``self.<k>`` are blocks of the moving average (needs the EMA algorithm).
        level: for ``kind="single"``: the group or level.
        tap: block whose output is aligned, 1-based, or group -> block; None and groups not named
            take the kind's.
        grid: group -> tokens per side that it is compared on; others: the DiT's own.
        loss: ``cosine`` or ``smooth_l1``; None takes the kind's.
        smooth_l1_beta: beta of the smooth L1 loss.
        token_weights: ``uniform`` or ``residual``.
        spatial_norm: share of the token mean removed from targets, None for raw targets, ``"kind"``
            for the kind's, which whitened targets do without.
        whiten: dimensions that PCA whitens each level to; None leaves them as they are.
        statistics: what whitening needs: ``<level>.mean`` and ``<level>.covariance``.
        head: ``mlp``, ``conv`` or ``linear``.
        head_width: hidden width of an MLP head.
        router: keyword arguments of :class:`~ahpa_scale.method.DynamicRouter`; of
            :class:`~ahpa_scale.method.ScheduledRouter` for ``kind="scheduled"``.
        objective: what trains the router, see :class:`~ahpa_scale.method.PriorAlignment`.
        prior_weight: holds a dynamic router to its prior; None takes the objective's default.
        gap_map: what ``objective="gap"`` follows; None measures the gap while training.
        ceiling: ``anywhere`` or ``same_t``, see :class:`~ahpa_scale.method.GapMap`.
        gap_strength: align more where more is lacking; needs ``objective="gap"``.
        window: lowest and highest noise level that is aligned; None for all.
        placebo: targets of another picture of the batch, a scientific control.
        num_bins: t-bins of the statistics.

    Attributes:
        groups: filled by :meth:`build` for kind ``self``.
        tap: filled by :meth:`build` where it was None.

    Raises:
        UserError: unknown kind, or a group that names a level which the batches don't bring.
    """

    def __init__(
        self,
        levels: Mapping[str, int],
        *,
        kind: str = "ahpa",
        groups: Mapping[str, Sequence[str]] | None = None,
        level: str | None = None,
        tap: int | Mapping[str, int] | None = None,
        grid: Mapping[str, int] | None = None,
        loss: str | None = None,
        smooth_l1_beta: float = 0.05,
        token_weights: str = "uniform",
        spatial_norm: float | Literal["kind"] | None = "kind",
        whiten: int | None = None,
        statistics: Mapping[str, Tensor] | None = None,
        head: str = "mlp",
        head_width: int = 2048,
        router: Mapping[str, Any] | None = None,
        objective: str = "standardised",
        prior_weight: float | None = None,
        gap_map: GapMap | None = None,
        ceiling: str = "anywhere",
        gap_strength: bool = False,
        window: tuple[float, float] | None = None,
        placebo: bool = False,
        num_bins: int = 10,
    ) -> None:
        for what, value, known in (
            ("kind of alignment", kind, KINDS),
            ("router objective", objective, ROUTERS),
        ):
            if value not in known:
                raise UserError(f"unknown {what} {value!r}; choose one of {', '.join(known)}")
        if ceiling != "anywhere" and gap_map is None:
            raise UserError(f"ceiling {ceiling!r} needs a gap_map")
        if gap_strength and objective != "gap":
            raise UserError(f"gap_strength needs objective='gap', not {objective!r}")
        defaults, routing = KINDS[kind], ROUTERS[objective]
        self.kind = kind
        self.channels = dict(levels)
        self.whiten = whiten
        # Those of kind self depend on the DiT's depth and follow when it is there.
        self.groups: dict[str, tuple[str, ...]] = {}
        if groups or kind != "self":
            chosen = groups or default_groups(self._encoder_levels())
            self.groups = kind_groups(kind, chosen, level)
        self._check_levels()
        self.tap = tap
        self.grid = None if grid is None else dict(grid)
        self._statistics = dict(statistics or {})
        self._gap = (gap_map, ceiling)
        self._router_settings = dict(router or {})
        if defaults.router == "dynamic":
            self._router_settings.setdefault("floor", routing.floor)
            self._router_settings.setdefault("snr_prior", routing.snr_prior)
        if spatial_norm == "kind":
            spatial_norm = defaults.spatial_norm if whiten is None else None
        self._alignment_settings: dict[str, Any] = {
            "loss": loss or defaults.loss,
            "smooth_l1_beta": smooth_l1_beta,
            "token_weights": token_weights,
            "spatial_norm": spatial_norm,
            "head": head,
            "head_width": head_width,
            "objective": objective,
            "prior_weight": routing.prior_weight if prior_weight is None else prior_weight,
            "gap_strength": gap_strength,
            "window": window,
            "placebo": placebo,
            "num_bins": num_bins,
        }

    def _encoder_levels(self) -> list[str]:
        return [name for name in self.channels if name not in (LATENT, EXTERNAL)]

    def _check_levels(self) -> None:
        for name in (one for group in self.groups.values() for one in group):
            if is_self_level(name):
                if self.whiten is not None:
                    raise UserError(f"whiten needs statistics, and {name!r} changes as it trains")
            elif name not in self.channels and name != LATENT:
                raise UserError(
                    f"kind {self.kind!r} aligns the level {name!r}, "
                    f"but the batches bring {', '.join(self.channels) or 'none'}"
                )

    def build(
        self, dit: DiT, gradient_ratio: float | None = None, plateau: Plateau | None = None
    ) -> PriorAlignment:
        """Builds the auxiliary for this DiT's depth, width and token grid.

        Args:
            dit: the backbone.
            gradient_ratio: see :class:`~ahpa_scale.method.PriorAlignment`; so is `plateau`.
            plateau: the rule that its residual is judged by.

        Raises:
            UserError: a group, block, grid or level that this DiT or the data don't have.
        """
        default_tap = KINDS[self.kind].tap(dit.depth)
        if self.tap is None:
            self.tap = default_tap
        self.groups = self.groups or default_self_groups(dit.depth, self.tap)
        if isinstance(self.tap, Mapping):
            blocks = per_group("tap", self.tap, self.groups, default_tap)
        else:
            blocks = [self.tap] * len(self.groups)
        # A latent is read in the DiT's own patches, so its channels follow from the DiT.
        channels = {**self.channels, LATENT: dit.in_channels * dit.patch_size**2}
        channels.update(self_channels(self.groups, blocks, dit))
        whitening = {}
        if self.whiten is not None:
            whitening = build_whitening(self.groups, channels, self.whiten, self._statistics)
            channels.update({level: one.dims for level, one in whitening.items()})
        gap_map, ceiling = self._gap
        return PriorAlignment(
            width=dit.width,
            grid=dit.grid,
            groups=self.groups,
            channels={g: sum(channels[one] for one in levels) for g, levels in self.groups.items()},
            router=self._build_router(),
            taps=blocks if isinstance(self.tap, Mapping) else None,
            grids=per_group("grid", self.grid or {}, self.groups, dit.grid),
            whitening=whitening,
            gap=None if gap_map is None else gap_map.gap(self.groups, blocks, ceiling),
            gradient_ratio=gradient_ratio,
            plateau=plateau,
            **self._alignment_settings,
        )

    def _build_router(self) -> nn.Module:
        router = KINDS[self.kind].router
        if router == "dynamic":
            return DynamicRouter(len(self.groups), **self._router_settings)
        if router == "scheduled":
            return ScheduledRouter(len(self.groups), **self._router_settings)
        return UniformRouter(len(self.groups))

    def shape(self) -> dict[str, Any]:
        """What a run and the checkpoint that it goes on from must agree on, as plain values."""
        return {
            "kind": self.kind,
            "tap": self.tap,
            "groups": {k: list(v) for k, v in self.groups.items()},
            "grid": self.grid,
        }
