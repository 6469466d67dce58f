# SPDX-License-Identifier: Apache-2.0
"""What a set of pictures is for the measures.

Shapes: B batch, S the picture's side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor

from ahpa_scale.data.pictures.rejects import Rejects
from ahpa_scale.errors import UserError
from ahpa_scale.evaluation.feature_sets import FeatureSet, collect
from ahpa_scale.evaluation.frechet import Gaussian
from ahpa_scale.evaluation.networks.base import INCEPTION, Network


@dataclass(frozen=True)
class Statistics:
    """Gaussians of features that somebody has computed before.

    Attributes:
        pooled: of the pooled features.
        spatial: of Inception's spatial features; None if they are not there.
        network: facts of the network that gave the features; None, as in others' files: Inception.
    """

    pooled: Gaussian
    spatial: Gaussian | None = None
    network: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """Name of the network."""
        return INCEPTION if self.network is None else str(self.network["name"])


class PictureSet(Protocol):
    """Pictures that can be read again and again, or statistics of them, or both."""

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        ...

    @property
    def digest(self) -> str:
        """Identifies the content."""
        ...

    @property
    def num_pictures(self) -> int:
        """Number of pictures; 0 if only statistics are known."""
        ...

    @property
    def side(self) -> int | None:
        """Side of the pictures; None without any."""
        ...

    @property
    def statistics(self) -> Statistics | None:
        """Of all pictures, or of more than these; None if there are none."""
        ...

    @property
    def rejects(self) -> Rejects:
        """Unreadable pictures of the latest pass."""
        ...

    def batches(self, batch_size: int, shown: bool) -> Iterator[Tensor]:
        """The pictures in order, uint8 [B, 3, S, S].

        Args:
            batch_size: pictures per batch.
            shown: whether to show progress.

        Raises:
            UserError: the content is not what it should be.
        """
        ...


def features_of(
    pictures: PictureSet,
    networks: Sequence[Network],
    batch_size: int,
    *,
    groups: int = 1,
    shown: bool = False,
) -> list[FeatureSet]:
    """What each network says of a set. Statistics in it win over moments of its pictures: they may
    be those of more pictures, as in ADM's reference files.

    Raises:
        UserError: there are statistics only, and not those of the network.
    """
    told = pictures.statistics
    for network in networks:
        _check_statistics(told, network, pictures)
    found: list[FeatureSet | None] = [None] * len(networks)
    if pictures.num_pictures:
        found = [*collect(networks, pictures.batches(batch_size, shown), groups)]
    return [
        _with_statistics(network, each, told) for network, each in zip(networks, found, strict=True)
    ]


def _check_statistics(told: Statistics | None, network: Network, pictures: PictureSet) -> None:
    name = network.facts["name"]
    if told is None:
        return
    if told.name != name:
        if not pictures.num_pictures:
            raise UserError(
                f"{pictures.place} holds statistics of {told.name}, and no pictures to compute "
                f"those of {name} from: take --features {told.name}"
            )
        return
    if told.network is not None and dict(told.network) != dict(network.facts):
        raise UserError(
            f"{pictures.place} holds statistics of {_told(told.network)}, and these are "
            f"{_told(network.facts)}: they cannot be compared"
        )


def _told(facts: Mapping[str, Any]) -> str:
    return f"{facts['name']} with weights {facts['weights']} ({facts['preprocessing']})"


def _with_statistics(
    network: Network, found: FeatureSet | None, told: Statistics | None
) -> FeatureSet:
    if told is None or told.name != network.facts["name"]:
        assert found is not None, "checked before"
        return found
    if found is None:
        return FeatureSet(network.facts, told.pooled, told.spatial)
    return replace(found, pooled=told.pooled, spatial=told.spatial, repeats={})


def digest_of(content: bytes) -> str:
    """The first digits of the SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]
