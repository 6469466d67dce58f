# SPDX-License-Identifier: Apache-2.0
"""The mathematics of AHPA: priors, router, heads, alignment losses. Needs no library but torch."""

from ahpa_scale.method.alignment import OBJECTIVES, AlignmentShape, PriorAlignment
from ahpa_scale.method.balance import GradientBalance
from ahpa_scale.method.gap import GapMap, gap_weights, recoverability_gap
from ahpa_scale.method.heads import HEAD_KINDS, build_head
from ahpa_scale.method.losses import (
    ALIGNMENT_LOSSES,
    TOKEN_WEIGHTS,
    AlignmentLoss,
    cosine_loss,
    residual_weights,
    smooth_l1_loss,
)
from ahpa_scale.method.priors import patchify, pool_to_grid, pool_tokens, spatial_normalise
from ahpa_scale.method.router import DynamicRouter, ScheduledRouter, UniformRouter
from ahpa_scale.method.settings import AlignmentSettings, HeadSettings, RouterSettings
from ahpa_scale.method.statistics import BinnedStatistics
from ahpa_scale.method.targets import GroupTargets, group_targets
from ahpa_scale.method.trend import Plateau, Release, ResidualTrend
from ahpa_scale.method.whitening import Whitening, whitening

__all__ = [
    "ALIGNMENT_LOSSES",
    "HEAD_KINDS",
    "OBJECTIVES",
    "TOKEN_WEIGHTS",
    "AlignmentLoss",
    "AlignmentSettings",
    "AlignmentShape",
    "BinnedStatistics",
    "DynamicRouter",
    "GapMap",
    "GradientBalance",
    "GroupTargets",
    "HeadSettings",
    "Plateau",
    "PriorAlignment",
    "Release",
    "ResidualTrend",
    "RouterSettings",
    "ScheduledRouter",
    "UniformRouter",
    "Whitening",
    "build_head",
    "cosine_loss",
    "gap_weights",
    "group_targets",
    "patchify",
    "pool_to_grid",
    "pool_tokens",
    "recoverability_gap",
    "residual_weights",
    "smooth_l1_loss",
    "spatial_normalise",
    "whitening",
]
