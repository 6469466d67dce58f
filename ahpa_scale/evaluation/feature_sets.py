# SPDX-License-Identifier: Apache-2.0
"""What measures need of a set of pictures: moments of its features, and a sample of the features.

Shapes: B batch, F pooled features, P spatial features, C classes, K kept pictures, S the picture's
side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ahpa_scale.evaluation.frechet import Gaussian, Moments
from ahpa_scale.evaluation.networks.base import Network
from ahpa_scale.models.randomness import sample_key

#: Groups of pictures, each of which is left out once for the confidence interval.
GROUPS = 10
#: Pictures whose features are kept for the measures that compare single pictures: as many as the
#: published protocols draw (ADM, arXiv 2105.05233, section 4). More would cost memory.
MOST_KEPT = 50_000
# A constant, not an option: intervals and samples of two runs must be drawn alike.
_SEED = 0


@dataclass(frozen=True)
class FeatureSet:
    """What one network says of one set of pictures.

    Attributes:
        facts: the network's name, weights and preprocessing.
        pooled: Gaussian of the pooled features; None without any.
        spatial: Gaussian of the spatial features; None if the network has none.
        kept_KF: pooled features of at most `MOST_KEPT` pictures, float32; None if only statistics
            are known.
        logits_KC: float32; None if the network does not classify.
        repeats: moments by group, of the pooled and the spatial features; empty if unknown.
    """

    facts: Mapping[str, Any]
    pooled: Gaussian
    spatial: Gaussian | None = None
    kept_KF: Tensor | None = None
    logits_KC: Tensor | None = None
    repeats: Mapping[str, Moments] = field(default_factory=dict)


class Collector:
    """Gathers what the measures need, batch by batch.

    Args:
        network: gives the features.
        groups: `GROUPS` for a set that gets confidence intervals, else 1.
        keep: whether a sample of the features is kept; without it only moments are.
    """

    def __init__(self, network: Network, groups: int = 1, *, keep: bool = True) -> None:
        self._network = network
        self._moments = {"pooled": Moments(groups), "spatial": Moments(groups)}
        self._kept = _Kept() if keep else None

    def add(self, images_B3SS: Tensor, index_B: Tensor) -> None:
        """Adds a batch.

        Args:
            images_B3SS: uint8 [B, 3, S, S], on any device.
            index_B: int64 [B], each picture's number in its set. Group and sample depend on it
                alone, never on batches or ranks.
        """
        index_B = index_B.cpu()
        features = self._network(images_B3SS)
        group_B = sample_key(_SEED, 0, index_B, "interval") % self._moments["pooled"].groups
        self._moments["pooled"].add(features.pooled_BF, group_B)
        if features.spatial_BP is not None:
            self._moments["spatial"].add(features.spatial_BP, group_B)
        if self._kept is None:
            return
        kept = {"index": index_B, "pooled": features.pooled_BF.float().cpu()}
        if features.logits_BC is not None:
            kept["logits"] = features.logits_BC.float().cpu()
        self._kept.add(sample_key(_SEED, 0, index_B, "kept"), kept)

    def add_up(self, sum_over_ranks: Callable[[Tensor], None]) -> None:
        """Adds the moments of other ranks, each of which has added at least one picture.

        Args:
            sum_over_ranks: sums a tensor of the CPU, float64 or int64, over the ranks, in place.
        """
        for moments in self._moments.values():
            for sums in moments.sums():
                sum_over_ranks(sums)

    def done(self) -> FeatureSet:
        """The finished set.

        Raises:
            UserError: fewer than two pictures, or features that are not finite.
        """
        pooled, spatial = self._moments["pooled"], self._moments["spatial"]
        kept = {} if self._kept is None else self._kept.tensors()
        grouped = {name: each for name, each in self._moments.items() if each.count}
        return FeatureSet(
            facts=self._network.facts,
            pooled=pooled.gaussian(),
            spatial=spatial.gaussian() if spatial.count else None,
            kept_KF=kept.get("pooled"),
            logits_KC=kept.get("logits"),
            repeats=grouped if pooled.groups > 1 else {},
        )


class _Kept:
    """The rows with the smallest keys. Keys are random numbers of the pictures' indices, so the
    rows are a uniform sample of the set that does not depend on its order.
    """

    def __init__(self) -> None:
        self._keys = torch.empty(0, dtype=torch.int64)
        self._parts: dict[str, list[Tensor]] = {}

    def add(self, key_B: Tensor, rows: Mapping[str, Tensor]) -> None:
        self._keys = torch.cat([self._keys, key_B])
        for name, rows_BX in rows.items():
            self._parts.setdefault(name, []).append(rows_BX)
        if len(self._keys) >= 2 * MOST_KEPT:
            self._thin_out()

    def tensors(self) -> dict[str, Tensor]:
        """The kept rows in the set's order, so that the library draws its own subsets of them."""
        self._thin_out()
        order_K = self._parts["index"][0].argsort()
        return {name: parts[0][order_K] for name, parts in self._parts.items()}

    def _thin_out(self) -> None:
        order_K = self._keys.argsort(stable=True)[:MOST_KEPT]
        self._keys = self._keys[order_K]
        self._parts = {name: [torch.cat(parts)[order_K]] for name, parts in self._parts.items()}


def collect(
    networks: Sequence[Network], batches: Iterable[Tensor], groups: int = 1
) -> list[FeatureSet]:
    """What each network says of a set of pictures, in one pass over them.

    Args:
        networks: at least one.
        batches: uint8 [B, 3, S, S].
        groups: see `Collector`.

    Raises:
        UserError: fewer than two pictures, or features that are not finite.
    """
    collectors, first = [Collector(network, groups) for network in networks], 0
    for images_B3SS in batches:
        index_B = torch.arange(first, first + len(images_B3SS))
        for collector in collectors:
            collector.add(images_B3SS, index_B)
        first += len(images_B3SS)
    return [collector.done() for collector in collectors]
