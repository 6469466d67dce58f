# SPDX-License-Identifier: Apache-2.0
"""Frechet distance between Gaussians, and their moments, streamed over any number of pictures.

torch-fidelity takes all features at once and the eigenvalues of an asymmetric product, which costs
a minute for 2,048 features. This module streams, and takes symmetric matrices only.

Shapes: B batch, F features, G groups of pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ahpa_scale.errors import UserError


@dataclass(frozen=True)
class Gaussian:
    """Mean and covariance of features.

    Attributes:
        mean_F: float64 [F].
        covariance_FF: float64 [F, F], divided by count - 1.
    """

    mean_F: Tensor
    covariance_FF: Tensor


class FrechetDistance:
    """Distance of any Gaussian from one real one (Heusel et al. 2017, arXiv 1706.08500, eq. 6).

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)). The trace of the root is the sum of the roots
    of the eigenvalues of B^(1/2) A B^(1/2), which is symmetric. B^(1/2) is computed once.

    Args:
        real: the Gaussian B.
    """

    def __init__(self, real: Gaussian) -> None:
        values_F, vectors_FF = torch.linalg.eigh(real.covariance_FF)
        self._root_FF = (vectors_FF * values_F.clamp(min=0.0).sqrt()) @ vectors_FF.T
        self._real = real

    def __call__(self, made: Gaussian) -> float:
        """The distance.

        Raises:
            UserError: the numbers of features differ.
        """
        real = self._real
        if made.mean_F.shape != real.mean_F.shape:
            raise UserError(
                f"cannot compare {len(made.mean_F)} features with {len(real.mean_F)}: use one "
                "network for both sets"
            )
        product_FF = self._root_FF @ made.covariance_FF @ self._root_FF
        # The triangle that is read stands for both, so rounding cannot make the matrix asymmetric.
        values_F = torch.linalg.eigvalsh(product_FF)
        apart = (made.mean_F - real.mean_F).square().sum()
        spread = made.covariance_FF.trace() + real.covariance_FF.trace()
        distance = apart + spread - 2.0 * values_F.clamp(min=0.0).sqrt().sum()
        # Rounding alone can take the distance of equal sets below zero.
        return max(0.0, float(distance))


class Moments:
    """Sums of features and of their outer products, float64 on the CPU. Memory does not grow with
    the number of pictures.

    Args:
        groups: pictures are summed in so many groups, so that each can be left out afterwards.
    """

    def __init__(self, groups: int = 1) -> None:
        self.groups = groups
        self._count_G = torch.zeros(groups, dtype=torch.int64)
        self._sum_GF: Tensor | None = None
        self._outer_GFF: Tensor | None = None

    def add(self, x_BF: Tensor, group_B: Tensor | None = None) -> None:
        """Adds a batch.

        Args:
            x_BF: features, any floating dtype.
            group_B: int64 [B], below `groups`; None: the first group.
        """
        x_BF = x_BF.to("cpu", torch.float64)
        if group_B is None:
            group_B = torch.zeros(len(x_BF), dtype=torch.int64)
        if self._sum_GF is None or self._outer_GFF is None:
            width = x_BF.shape[1]
            self._sum_GF = torch.zeros(self.groups, width, dtype=torch.float64)
            self._outer_GFF = torch.zeros(self.groups, width, width, dtype=torch.float64)
        for group in group_B.unique().tolist():
            part_BF = x_BF[group_B == group]
            self._count_G[group] += len(part_BF)
            self._sum_GF[group] += part_BF.sum(dim=0)
            self._outer_GFF[group].addmm_(part_BF.T, part_BF)

    def sums(self) -> list[Tensor]:
        """The live sums of this process, for adding those of other ranks in place; empty before
        the first batch.
        """
        if self._sum_GF is None or self._outer_GFF is None:
            return []
        return [self._count_G, self._sum_GF, self._outer_GFF]

    @property
    def count(self) -> int:
        """Pictures that were added."""
        return int(self._count_G.sum())

    def gaussian(self, without: int | None = None) -> Gaussian:
        """Mean and covariance of all pictures, or of those outside one group.

        Raises:
            UserError: fewer than two pictures, or features that are not finite.
        """
        chosen_G = torch.ones(self.groups, dtype=torch.float64)
        if without is not None:
            chosen_G[without] = 0.0
        count = int((self._count_G * chosen_G).sum())
        if count < 2 or self._sum_GF is None or self._outer_GFF is None:
            raise UserError(f"a covariance needs at least 2 pictures, not {count}")
        mean_F = chosen_G @ self._sum_GF / count
        outer_FF = torch.einsum("g,gij->ij", chosen_G, self._outer_GFF)
        covariance_FF = (outer_FF - count * torch.outer(mean_F, mean_F)) / (count - 1)
        if not bool(torch.isfinite(covariance_FF).all()):
            raise UserError("features hold numbers that are not finite")
        return Gaussian(mean_F, covariance_FF)
