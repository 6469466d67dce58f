# SPDX-License-Identifier: Apache-2.0
"""Distances between sets of features, in double precision: Frechet, kernel (KID), accuracy.

Shapes: N M pictures, F features, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ahpa_scale.errors import UserError

_PARTITION_SEED = 0


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean and covariance of a set of features.

    Attributes:
        mean_F: float64 [F].
        covariance_FF: float64 [F, F], unbiased (divided by count - 1).
        count: number of pictures.
    """

    mean_F: Tensor
    covariance_FF: Tensor
    count: int

    @classmethod
    def of(cls, features_NF: Tensor) -> FeatureStatistics:
        """Statistics of the rows of a matrix, computed in float64.

        Raises:
            UserError: fewer than two rows, or a number that is not finite.
        """
        x_NF = _checked(features_NF, 2)
        mean_F = x_NF.mean(dim=0)
        centred_NF = x_NF - mean_F
        return cls(mean_F, centred_NF.T @ centred_NF / (len(x_NF) - 1), len(x_NF))


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Frechet distance between two Gaussians (Heusel et al. 2017, arXiv 1706.08500, equation 6).

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)), where the trace of the root is the sum of the
    singular values of A^(1/2) B^(1/2): two symmetric roots, so no complex square root is needed.

    Raises:
        UserError: different numbers of features.
    """
    if a.mean_F.shape != b.mean_F.shape:
        raise UserError(
            f"cannot compare {len(a.mean_F)} features with {len(b.mean_F)}: use one judge for both"
        )
    cross = torch.linalg.svdvals(_root(a.covariance_FF) @ _root(b.covariance_FF)).sum()
    apart = (a.mean_F - b.mean_F).square().sum()
    spread = a.covariance_FF.trace() + b.covariance_FF.trace()
    # Rounding alone can take the distance of equal sets below zero.
    return max(0.0, float(apart + spread - 2.0 * cross))


def kernel_distance(x_NF: Tensor, y_MF: Tensor, block: int = 1000) -> float:
    """Kernel distance (KID): unbiased squared MMD with the kernel (x y / F + 1)^3.

    Binkowski et al. 2018, arXiv 1801.01401, section 4. The larger set is cut to the smaller one's
    size. Both are split into equal blocks by a fixed permutation, and the blocks' estimates are
    averaged. The estimate is unbiased, so it can be below zero.

    Args:
        x_NF: features of the one set.
        y_MF: features of the other.
        block: at most this many rows per block.

    Raises:
        UserError: fewer than two rows, or different numbers of features.
    """
    x_NF, y_MF = _checked(x_NF, 2), _checked(y_MF, 2)
    if x_NF.shape[1] != y_MF.shape[1]:
        raise UserError(
            f"cannot compare {x_NF.shape[1]} features with {y_MF.shape[1]}: use one judge for both"
        )
    if block < 2:
        raise UserError(f"block must be at least 2, got {block}")
    count = min(len(x_NF), len(y_MF))
    parts = -(-count // block)
    size = count // parts
    rows_x, rows_y = (
        _permutation(len(z), z.device)[: parts * size].split(size) for z in (x_NF, y_MF)
    )
    estimates = [_mmd(x_NF[i], y_MF[j]) for i, j in zip(rows_x, rows_y, strict=True)]
    return float(torch.stack(estimates).mean())


def class_accuracy(logits_NK: Tensor, labels_N: Tensor) -> float:
    """Share of pictures whose likeliest class is their label.

    Raises:
        UserError: the numbers of labels and pictures differ.
    """
    if labels_N.shape != logits_NK.shape[:1]:
        raise UserError(
            f"{len(logits_NK)} pictures need {len(logits_NK)} labels, got {list(labels_N.shape)}"
        )
    return float((logits_NK.argmax(dim=1) == labels_N.to(logits_NK.device)).double().mean())


def _checked(features_NF: Tensor, fewest: int) -> Tensor:
    if features_NF.ndim != 2 or len(features_NF) < fewest:
        raise UserError(
            f"features must be [N, F] with at least {fewest} rows, got {list(features_NF.shape)}"
        )
    x_NF = features_NF.double()
    if not bool(torch.isfinite(x_NF).all()):
        raise UserError("features hold numbers that are not finite")
    return x_NF


def _root(matrix_FF: Tensor) -> Tensor:
    values_F, vectors_FF = torch.linalg.eigh(matrix_FF)
    return (vectors_FF * values_F.clamp(min=0.0).sqrt()) @ vectors_FF.T


def _permutation(count: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(_PARTITION_SEED)
    return torch.randperm(count, generator=generator).to(device)


def _mmd(x_NF: Tensor, y_NF: Tensor) -> Tensor:
    count, width = x_NF.shape

    def kernel(a_NF: Tensor, b_NF: Tensor) -> Tensor:
        return (a_NF @ b_NF.T / width + 1.0) ** 3

    within = sum(
        (k_NN.sum() - k_NN.trace()) / (count * (count - 1))
        for k_NN in (kernel(x_NF, x_NF), kernel(y_NF, y_NF))
    )
    return torch.as_tensor(within) - 2.0 * kernel(x_NF, y_NF).mean()
