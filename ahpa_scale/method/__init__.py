# SPDX-License-Identifier: Apache-2.0
"""The mathematics of AHPA: priors, router, heads and alignment losses. Imports torch and nothing
else.
"""

from ahpa_scale.method.alignment import PriorAlignment
from ahpa_scale.method.heads import HEAD_KINDS, build_head
from ahpa_scale.method.losses import ALIGNMENT_LOSSES, cosine_loss, smooth_l1_loss
from ahpa_scale.method.priors import group_targets, patchify, pool_to_grid, spatial_normalise
from ahpa_scale.method.router import DynamicRouter, ScheduledRouter, UniformRouter
from ahpa_scale.method.statistics import BinnedStatistics

__all__ = [
    "ALIGNMENT_LOSSES",
    "HEAD_KINDS",
    "BinnedStatistics",
    "DynamicRouter",
    "PriorAlignment",
    "ScheduledRouter",
    "UniformRouter",
    "build_head",
    "cosine_loss",
    "group_targets",
    "patchify",
    "pool_to_grid",
    "smooth_l1_loss",
    "spatial_normalise",
]
