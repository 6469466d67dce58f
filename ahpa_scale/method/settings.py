# SPDX-License-Identifier: Apache-2.0
"""Every choice of one alignment in one place, passed whole from the configuration to the loss.

What the data set and the backbone fix (channels, widths, measured maps) is no choice and is not
here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ahpa_scale.method.trend import Release


@dataclass(frozen=True)
class HeadSettings:
    """The projection from the backbone's tokens to one group's channels.

    Attributes:
        kind: ``mlp``, ``conv`` or ``linear``, see :func:`ahpa_scale.method.heads.build_head`; None
            takes the default of the alignment's kind.
        width: hidden width of an MLP.
    """

    kind: str | None = None
    width: int = 2048


@dataclass(frozen=True)
class RouterSettings:
    """The dynamic router, and what trains it. None takes the objective's default.

    Attributes:
        objective: ``literal``: the alignment loss itself, whose gradient sends all weight to the
            level that is *easiest* at that t (see the method card). ``standardised``: each level's
            loss, standardised by its own running mean and deviation in that t-bin, so that an easy
            level has no head start. ``gap`` and ``agreement``: the cross-entropy to known weights,
            see :mod:`ahpa_scale.method.gap`.
        gap_strength: align in proportion to the whole gap at each t, instead of equally strongly;
            needs ``objective="gap"``.
        hidden: width of the hidden layers.
        depth: linear layers.
        temperature: divides the logits.
        top_k: groups kept at each t; None keeps all.
        floor: least weight of each group.
        prior_weight: beta, the cost of the Kullback-Leibler divergence of the prior from the
            router's shares. Under ``standardised`` the optimum is ``w = prior / (1 + (z - sum w z)
            / beta)``, apart from the floor. Without this cost the noise of z alone drives the
            weights into a corner, because Adam's steps don't shrink with the gradient.
        snr_prior: strength of the prior "coarse at high noise".
    """

    objective: str = "standardised"
    gap_strength: bool = False
    hidden: int = 256
    depth: int = 4
    temperature: float = 1.0
    top_k: int | None = None
    floor: float | None = None
    prior_weight: float | None = None
    snr_prior: float | None = None

    def network(self) -> dict[str, Any]:
        """The settings of the network alone, for :class:`~ahpa_scale.method.DynamicRouter`."""
        others = ("objective", "gap_strength", "prior_weight")
        return {name: value for name, value in asdict(self).items() if name not in others}


@dataclass(frozen=True)
class AlignmentSettings:
    """What is aligned, with what, where, how strongly and how long. None takes the kind's default.

    Attributes:
        kind: ``ahpa``, ``uniform``, ``scheduled``, ``single``, ``latent``, ``velocity``, ``repa``
            or ``self``.
        groups: group name -> its levels, fine to coarse; None groups the encoder's levels in up to
            three. Levels ``self.<k>`` are blocks of the moving average (needs the EMA algorithm).
        level: for kind ``single``: the group or level.
        weight: lambda, the factor of the alignment loss.
        gradient_ratio: in place of `weight`: the wanted norm of the alignment's gradient at the
            taps, in units of the flow's.
        start: Composer time string from which alignment acts.
        until: Composer time string at which it is released for good (HASTE, arXiv 2505.16792), or
            None for never.
        ramp: Composer time string over which the weight falls to 0 from `until` on; None: at once.
        release: releases it by measurement; None leaves it to `until`.
        tap: block whose output is aligned, 1-based, or group -> block; groups not named take the
            kind's.
        reverse: kind ``scheduled``: fine levels at high noise.
        sharpness: kind ``scheduled``: how sharply weights follow the noise level.
        self_lead: how much less noise the moving average sees than the student, for levels
            ``self.<k>`` (SRA, arXiv 2505.02831).
        window: lowest and highest noise level that is aligned; None for all.
        placebo: targets of another picture of the batch, a scientific control.
        grid: group -> tokens per side that it is compared on; others: the backbone's own.
        whiten: dimensions that PCA whitens each level to; None leaves them as they are.
        token_weights: ``uniform`` or ``residual``, see :class:`~ahpa_scale.method.AlignmentLoss`.
        loss: ``cosine``, ``smooth_l1`` or ``squared``.
        smooth_l1_beta: beta of the smooth L1 loss.
        spatial_norm: share of the token mean removed from targets, None for raw targets, ``"kind"``
            for the kind's default, or None if targets are whitened.
        head: the projection.
        router: for kinds with a dynamic router.
        bins: t-bins of the statistics.
    """

    kind: str = "ahpa"
    groups: Mapping[str, Sequence[str]] | None = None
    level: str | None = None
    weight: float | None = None
    gradient_ratio: float | None = None
    start: str = "0ba"
    until: str | None = None
    ramp: str | None = None
    release: Release | None = None
    tap: int | Mapping[str, int] | None = None
    reverse: bool = False
    sharpness: float = 3.0
    self_lead: float = 0.1
    window: tuple[float, float] | None = None
    placebo: bool = False
    grid: Mapping[str, int] | None = None
    whiten: int | None = None
    token_weights: str = "uniform"
    loss: str | None = None
    smooth_l1_beta: float = 0.05
    spatial_norm: float | Literal["kind"] | None = "kind"
    head: HeadSettings = field(default_factory=HeadSettings)
    router: RouterSettings = field(default_factory=RouterSettings)
    bins: int = 10
