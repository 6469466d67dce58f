# SPDX-License-Identifier: Apache-2.0
"""Compares shapes and places of the objects found in demo pictures with labels and rules.

Shapes: N pictures, O object slots, K classes, hw cells, Q quantiles.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ahpa_scale.data.demo import DemoSpec
from ahpa_scale.data.demo.spec import RULES
from ahpa_scale.data.demo.textures import HUE_NAMES, HUES
from experiments.judges.distributions import quantiles
from experiments.judges.factor_judge import Objects

#: Largest counted distance, so that one lost object doesn't outweigh many others.
FARTHEST = 0.5
_NEAREST = 0.2
_SAME_HUE = 0.05
_AGREEMENT = 0.8
_REACH = 1.1


def first_object(objects: Objects, labels_N: Tensor, spec: DemoSpec) -> Tensor:
    """Slot [N] of the object that the label names: the largest of its hue, or else the largest.

    A picture without objects gets slot 0.
    """
    hues_K = torch.tensor(
        [HUES[HUE_NAMES[spec.shape_and_hue(label)[1]]] for label in range(spec.num_classes)]
    )
    apart_NO = (objects.hue_NO - hues_K[labels_N][:, None]).abs()
    apart_NO = torch.minimum(apart_NO, 1.0 - apart_NO)
    # Sizes are below 1, so + 1 puts any object of the right hue before all others.
    rank_NO = objects.size_NO + 1.0 * (apart_NO < _SAME_HUE)
    return torch.where(objects.there_NO, rank_NO, -1.0).argmax(dim=1)


def named_shape_share(objects: Objects, labels_N: Tensor, first_N: Tensor, spec: DemoSpec) -> float:
    """Share of pictures whose first object has the shape that the label names."""
    shapes_K = torch.tensor([spec.shape_and_hue(label)[0] for label in range(spec.num_classes)])
    right_NO = objects.there_NO & (objects.shape_NO == shapes_K[labels_N][:, None])
    return float(_pick(right_NO, first_N).double().mean())


def agreeing_share(objects: Objects, cover_Nhw: Tensor) -> float:
    """Share of objects that have one shape on 80 % of their cells.

    A covered cell belongs to the object whose reach contains it most deeply. A picture without
    objects counts as one object that disagrees.
    """
    height, width = cover_Nhw.shape[-2:]
    x_w, y_h = (torch.arange(width) + 0.5) / width, (torch.arange(height) + 0.5) / height
    place_NO2 = objects.place_NO2
    away_NOhw = torch.hypot(
        x_w - place_NO2[..., 0, None, None], y_h[:, None] - place_NO2[..., 1, None, None]
    )
    depth_NOhw = away_NOhw / (_REACH * objects.size_NO[..., None, None])
    depth_NOhw = torch.where(objects.there_NO[..., None, None], depth_NOhw, torch.inf)
    nearest_Nhw = depth_NOhw.min(dim=1)
    covered_Nhw = (cover_Nhw > 0) & (nearest_Nhw.values <= 1.0)
    slots, kinds = objects.there_NO.shape[1], int(cover_Nhw.max()) + 1
    vote_NL = (nearest_Nhw.indices * kinds + cover_Nhw).flatten(1)
    count_NOK = torch.zeros(len(vote_NL), slots * kinds)
    count_NOK.scatter_add_(1, vote_NL, covered_Nhw.flatten(1).float())
    count_NOK = count_NOK.unflatten(1, (slots, kinds))
    share_NO = count_NOK.amax(dim=2) / count_NOK.sum(dim=2).clamp(min=1.0)
    agree_NO = objects.there_NO & (share_NO >= _AGREEMENT)
    empty = int((~objects.there_NO.any(dim=1)).sum())
    return int(agree_NO.sum()) / (int(objects.there_NO.sum()) + empty)


def binds_places(labels_N: Tensor, spec: DemoSpec) -> Tensor:
    """Which labels have a rule that sets the second object's place, bool [N]."""
    rule_N = labels_N % len(RULES)
    across, down = RULES.index("mirrored across"), RULES.index("mirrored down")
    return (rule_N == across) | (rule_N == down) if spec.relations == "label" else rule_N < 0


def rule_error(objects: Objects, labels_N: Tensor, first_N: Tensor, spec: DemoSpec) -> float:
    """Mean distance from the place that a rule asks for to the nearest object except the first.

    Counts pictures whose label sets a place. In picture sides, at most 0.5; a missing object counts
    0.5 as well. Pictures whose asked place is nearer than 0.2 to the first object are left out,
    because one object may hide the other.
    """
    across_N1 = (labels_N % len(RULES) == RULES.index("mirrored across"))[:, None]
    first_N2 = _pick(objects.place_NO2, first_N)
    # "mirrored across" flips x, "mirrored down" flips y.
    flips_N2 = torch.cat([across_N1, ~across_N1], dim=1)
    asked_N2 = torch.where(flips_N2, 1.0 - first_N2, first_N2)
    apart_NO = (objects.place_NO2 - asked_N2[:, None]).norm(dim=2)
    others_NO = objects.there_NO.scatter(1, first_N[:, None], False)
    error_N = torch.where(others_NO, apart_NO, FARTHEST).amin(dim=1).clamp(max=FARTHEST)
    found_N = objects.there_NO.any(dim=1)
    error_N = torch.where(found_N, error_N, FARTHEST)
    telling_N = (asked_N2 - first_N2).norm(dim=1) >= _NEAREST
    counted_N = binds_places(labels_N, spec) & (telling_N | ~found_N)
    if not bool(counted_N.any()):
        return FARTHEST
    return float(error_N[counted_N].double().mean())


def layout_quantiles(objects: Objects, spec: DemoSpec) -> Tensor:
    """Distributions of x, y and size of objects and of their number per picture, float64 [4, Q].

    Places and sizes are in picture sides, numbers are relative to the spec's maximum. If nothing
    was found, places and sizes are those of one speck in a corner.
    """
    there_NO = objects.there_NO
    values = [objects.place_NO2[..., 0], objects.place_NO2[..., 1], objects.size_NO]
    columns = [value_NO[there_NO] for value_NO in values]
    if not len(columns[0]):
        columns = [torch.zeros(1)] * len(values)
    columns.append(there_NO.sum(dim=1) / spec.objects[1])
    return torch.stack([quantiles(column_P) for column_P in columns])


def _pick(values_NO: Tensor, slot_N: Tensor) -> Tensor:
    return values_NO[torch.arange(len(slot_N)), slot_N]
