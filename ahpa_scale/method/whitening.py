# SPDX-License-Identifier: Apache-2.0
"""PCA whitening of one level by the data set's own statistics.

Legend: B batch, N tokens, C channels of a level, K channels kept.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ahpa_scale.errors import UserError

#: Directions below this share of the largest variance are not scaled up to variance 1: there the
#: stored half-precision features hold rounding noise.
VARIANCE_FLOOR = 1e-4


def whitening(
    mean_C: Tensor, covariance_CC: Tensor, dims: int, floor: float = VARIANCE_FLOOR
) -> tuple[Tensor, Tensor]:
    """The linear map onto a level's leading principal directions, each scaled to variance 1.

    "What Visual Generators Need from Teachers" (RARE, 2026) finds targets whitened to 128
    dimensions as good as whole ones.

    Args:
        mean_C: mean over pooled tokens.
        covariance_CC: their covariance.
        dims: directions kept; all of them where the level has fewer channels.
        floor: least variance that is scaled up in full, as a share of the largest.

    Returns:
        ``mean_C`` and ``matrix_CK``, float32; a token becomes ``(y_C - mean_C) @ matrix_CK``.

    Raises:
        UserError: `dims` below 1, shapes that don't fit, or a level that never varies.
    """
    if dims < 1 or covariance_CC.shape != (mean_C.numel(),) * 2:
        raise UserError(
            f"whitening to {dims} dimensions with a mean of {list(mean_C.shape)} and a covariance "
            f"of {list(covariance_CC.shape)}: give at least 1, [C] and [C, C]"
        )
    # In double precision: the smallest of several hundred eigenvalues are divisors.
    variance_C, direction_CC = torch.linalg.eigh(covariance_CC.double())
    variance_C, direction_CC = variance_C.flip(0), direction_CC.flip(1)
    if not bool(variance_C[0] > 0):
        raise UserError("a level that never varies can't be whitened")
    kept_K = variance_C[:dims].clamp(min=floor * float(variance_C[0]))
    matrix_CK = direction_CC[:, :dims]
    # An eigenvector's sign is arbitrary; this choice is the same on every machine.
    largest_1K = matrix_CK.abs().argmax(dim=0, keepdim=True)
    matrix_CK = matrix_CK * matrix_CK.gather(0, largest_1K).sign() * kept_K.rsqrt()
    return mean_C.float(), matrix_CK.float()


class Whitening(nn.Module):
    """A level's whitening, kept in the state dict so that a resumed run has the same targets.

    Args:
        mean_C: see :func:`whitening`.
        matrix_CK: see :func:`whitening`.
    """

    def __init__(self, mean_C: Tensor, matrix_CK: Tensor) -> None:
        super().__init__()
        self.mean_C: Tensor
        self.matrix_CK: Tensor
        self.register_buffer("mean_C", mean_C)
        self.register_buffer("matrix_CK", matrix_CK)

    @property
    def dims(self) -> int:
        """K."""
        return self.matrix_CK.shape[1]

    def forward(self, target_BNC: Tensor) -> Tensor:
        """Maps float32 tokens ``[B, N, C]`` to ``[B, N, K]``."""
        return (target_BNC - self.mean_C) @ self.matrix_CK
