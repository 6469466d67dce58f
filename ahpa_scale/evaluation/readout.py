# SPDX-License-Identifier: Apache-2.0
"""A linear readout by ridge regression, computed from sums so that no token is kept.

Legend: N tokens, D channels read from, C channels read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ahpa_scale.precision import float32_region, full_float32


class PairMoments:
    """Second moments of token pairs (x, y) about their means, merged batch by batch.

    Products are taken in float32 about the batch's own means and merged in float64 as in Chan,
    Golub & LeVeque 1983, eq. 2.1, so that a mean far from zero costs no precision.

    Args:
        x_channels: D.
        y_channels: C.
        device: where the sums are kept.
    """

    def __init__(self, x_channels: int, y_channels: int, device: torch.device) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.count = 0
        self.mean_D, self.mean_C = zeros(x_channels), zeros(y_channels)
        self.xx_DD, self.xy_DC = zeros(x_channels, x_channels), zeros(x_channels, y_channels)
        self.yy_C = zeros(y_channels)

    def update(self, x_ND: Tensor, y_NC: Tensor) -> None:
        """Adds tokens; an empty batch adds nothing."""
        added, total = len(x_ND), self.count + len(x_ND)
        if not added:
            return
        with exact_products(x_ND):
            x_ND, y_NC = x_ND.float(), y_NC.float()
            x_mean_D, y_mean_C = x_ND.mean(dim=0), y_NC.mean(dim=0)
            x_ND, y_NC = x_ND - x_mean_D, y_NC - y_mean_C
            products = (x_ND.T @ x_ND, x_ND.T @ y_NC, y_NC.square().sum(dim=0))
        delta_D, delta_C = x_mean_D.double() - self.mean_D, y_mean_C.double() - self.mean_C
        share = self.count * added / total
        self.xx_DD += products[0].double() + share * torch.outer(delta_D, delta_D)
        self.xy_DC += products[1].double() + share * torch.outer(delta_D, delta_C)
        self.yy_C += products[2].double() + share * delta_C.square()
        self.mean_D += delta_D * (added / total)
        self.mean_C += delta_C * (added / total)
        self.count = total


def explained_shares(
    fit: PairMoments, held: PairMoments, parts: Sequence[slice], ridge: float
) -> list[float]:
    """R^2 on held-out tokens of y read linearly from x.

    Closed form: ``W = (X'X + ridge * tr(X'X) / D)^-1 X'Y`` about the means of the fitted tokens,
    which serve as the constant term.

    Args:
        fit: tokens that the readout is fitted to.
        held: tokens that it is evaluated on.
        parts: slices of y's channels; each gives one number.
        ridge: share of the mean variance of x that is added to every direction, above 0.

    Returns:
        For each part ``1 - sum of squared errors / sum of squares about the held-out mean``, both
        over all its channels (so a channel counts by its variance), clamped at 0; 0 for a part that
        never varies.
    """
    width = len(fit.mean_D)
    # The second term only keeps the matrix invertible where x never varies.
    penalty = ridge * fit.xx_DD.trace() / width + torch.finfo(torch.float64).tiny
    penalised_DD = fit.xx_DD + penalty * torch.eye(
        width, dtype=torch.float64, device=penalty.device
    )
    weight_DC = torch.cholesky_solve(fit.xy_DC, torch.linalg.cholesky(penalised_DD))
    shift_D, shift_C = held.mean_D - fit.mean_D, held.mean_C - fit.mean_C
    xx_DD = held.xx_DD + held.count * torch.outer(shift_D, shift_D)
    xy_DC = held.xy_DC + held.count * torch.outer(shift_D, shift_C)
    yy_C = held.yy_C + held.count * shift_C.square()
    error_C = yy_C + (weight_DC * (xx_DD @ weight_DC - 2 * xy_DC)).sum(dim=0)
    totals = [(error_C[part].sum(), held.yy_C[part].sum()) for part in parts]
    shares = [torch.where(total > 0, 1 - error / total, 0.0) for error, total in totals]
    return [float(share) for share in torch.stack(shares).clamp(min=0).cpu()]


@contextmanager
def exact_products(tensor: Tensor) -> Iterator[None]:
    """Full float32 matrix products: no autocast and no TensorFloat-32, which Composer turns on."""
    with full_float32(), float32_region(tensor):
        yield
