# SPDX-License-Identifier: Apache-2.0
"""The kinds of alignment that one line of YAML selects, with their defaults.

Imports nothing heavy: the configuration reads its defaults from here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from ahpa_scale.errors import UserError
from ahpa_scale.level_names import EXTERNAL, LATENT, OWN_BLOCKS, VELOCITY

if TYPE_CHECKING:
    from ahpa_scale.method import AlignmentSettings


@dataclass(frozen=True)
class Kind:
    """Defaults of one kind of alignment.

    Attributes:
        router: ``dynamic``, ``uniform`` or ``scheduled``.
        weight: lambda, the loss's factor.
        loss: ``cosine``, ``smooth_l1`` or ``squared``.
        spatial_norm: share of the token mean removed from targets, or None for raw targets.
        level: the one level that it aligns, or None for levels in groups.
        depth_share: where it taps the backbone, as a share of the depth.
        deepest_tap: block beyond which it never taps by default.
        head: ``mlp``, ``conv`` or ``linear``.
    """

    router: str
    weight: float = 0.5
    loss: str = "cosine"
    spatial_norm: float | None = 0.6
    level: str | None = None
    depth_share: float = 1 / 4
    deepest_tap: int = 7
    head: str = "mlp"

    def tap(self, depth: int) -> int:
        """The block to tap, 1-based, in a backbone of this depth."""
        return max(1, min(self.deepest_tap, round(self.depth_share * depth)))


KINDS: dict[str, Kind] = {
    # A quarter of the depth: block 7 of XL as in the paper, 3 of B as in the independent re-run.
    "ahpa": Kind(router="dynamic"),
    "uniform": Kind(router="uniform"),
    "scheduled": Kind(router="scheduled"),
    "single": Kind(router="uniform"),
    # SRA 2 finds latent targets best at block 2, with smooth L1 and weight 1.
    "latent": Kind("uniform", 1.0, "smooth_l1", None, LATENT, 1 / 4, deepest_tap=2),
    # Deep supervision (Internal Guidance, arXiv 2512.24176): a layer at an early block predicts
    # what the last one does, by the flow's own loss.
    "velocity": Kind("uniform", 0.5, "squared", None, VELOCITY, 1 / 4, head="linear"),
    # REPA (arXiv 2410.06940) taps block 4 of B, 8 of L and XL.
    "repa": Kind("uniform", 0.5, "cosine", None, EXTERNAL, 1 / 3, deepest_tap=8),
    # The model's own deeper blocks, after SRA (arXiv 2505.02831).
    "self": Kind(router="dynamic", spatial_norm=None),
}


@dataclass(frozen=True)
class RouterDefaults:
    """Defaults of a dynamic router that depend on what trains it.

    Attributes:
        floor: least weight of each level.
        snr_prior: strength of the prior "coarse at high noise".
        prior_weight: cost of leaving the prior.
    """

    floor: float
    snr_prior: float
    prior_weight: float


#: The literal router is only what the paper states; nothing is added to stabilise it.
ROUTERS: dict[str, RouterDefaults] = {
    "standardised": RouterDefaults(floor=0.05, snr_prior=1.0, prior_weight=0.5),
    "literal": RouterDefaults(floor=0.0, snr_prior=0.0, prior_weight=0.0),
    # Both train to known weights: nothing drifts away, so no prior is needed.
    "gap": RouterDefaults(floor=0.05, snr_prior=0.0, prior_weight=0.0),
    "agreement": RouterDefaults(floor=0.05, snr_prior=0.0, prior_weight=0.0),
}


def filled(settings: AlignmentSettings) -> AlignmentSettings:
    """Settings with the defaults of their kind and of their router's objective filled in. The tap
    stays as it is: its default depends on the backbone's depth.

    Raises:
        UserError: an unknown kind or objective, both a weight and a gradient ratio, or
            ``gap_strength`` without the objective ``gap``.
    """
    chosen, router = settings, settings.router
    for what, value, known in (
        ("kind of alignment", chosen.kind, KINDS),
        ("router objective", router.objective, ROUTERS),
    ):
        if value not in known:
            raise UserError(f"unknown {what} {value!r}; choose one of {', '.join(known)}")
    if router.gap_strength and router.objective != "gap":
        raise UserError(f"gap_strength needs objective='gap', not {router.objective!r}")
    if chosen.weight is not None and chosen.gradient_ratio is not None:
        raise UserError("alignment has both weight and gradient_ratio: give one of them")
    kind = KINDS[chosen.kind]
    spatial_norm = chosen.spatial_norm
    if spatial_norm == "kind":
        spatial_norm = kind.spatial_norm if chosen.whiten is None else None
    weight = kind.weight if chosen.gradient_ratio is None else 1.0
    defaults = asdict(ROUTERS[router.objective])
    return replace(
        chosen,
        weight=weight if chosen.weight is None else chosen.weight,
        loss=chosen.loss or kind.loss,
        head=replace(chosen.head, kind=chosen.head.kind or kind.head),
        spatial_norm=spatial_norm,
        router=replace(router, **{k: v for k, v in defaults.items() if getattr(router, k) is None}),
    )


def self_groups(depth: int, tap: int) -> dict[str, tuple[str, ...]]:
    """The groups of kind ``self``, one per block: those at half and two thirds of the depth and the
    last but one, if they lie behind the tap; the last block if none does.

    Args:
        depth: blocks of the backbone.
        tap: the deepest block that is aligned, 1-based.

    Raises:
        UserError: nothing lies behind the tap.
    """
    wanted = {round(depth / 2), round(2 * depth / 3), depth - 1}
    blocks = sorted(block for block in wanted if block > tap) or [depth]
    if blocks[0] <= tap:
        raise UserError(f"kind 'self' aligns block {tap} with deeper ones, and there are {depth}")
    return {level: (level,) for level in map(OWN_BLOCKS.level, blocks)}


def kind_groups(
    kind: str, groups: Mapping[str, Sequence[str]], level: str | None
) -> dict[str, tuple[str, ...]]:
    """The groups of levels that a kind aligns.

    Args:
        kind: a key of :data:`KINDS`.
        groups: the VAE encoder's levels in groups, fine to coarse.
        level: for ``single``, the name of a group or of a level.

    Raises:
        UserError: kind ``single`` with a `level` that is neither.
    """
    fixed = KINDS[kind].level
    if fixed is not None:
        return {fixed: (fixed,)}
    named = {name: tuple(levels) for name, levels in groups.items()}
    if kind != "single":
        return named
    levels = [name for members in named.values() for name in members]
    if level is not None and level in named:
        return {level: named[level]}
    if level is not None and level in levels:
        return {level: (level,)}
    raise UserError(
        f"alignment.level {level!r} is neither a group nor a level; "
        f"choose one of {', '.join([*named, *levels])}"
    )
