# SPDX-License-Identifier: Apache-2.0
"""How much of some tokens a linear readout of other tokens leaves, on held-out pictures.

Legend: N tokens, M held-out tokens, X channels read from, C channels read.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Penalties that are tried, in units of the mean square of a token.
_PENALTIES = (1e-2, 1e-1, 1.0, 10.0)


def unexplained_share(
    x: Sequence[Tensor], y_NC: Tensor, held_x: Sequence[Tensor], held_y_MC: Tensor
) -> float:
    """Share of the variance of held-out y that no linear function of x explains.

    Ridge regression. The best of four penalties on the held-out tokens counts, so that the share is
    told low rather than high.

    Args:
        x: parts of x, float ``[N, X]``; each part counts alike, whatever its units.
        y_NC: float ``[N, C]``; a channel counts by its variance.
        held_x: the same parts of held-out tokens, ``[M, X]``.
        held_y_MC: ``[M, C]``.

    Returns:
        1 - R^2, from 0 to 1; 0 where y never varies.
    """
    y_NC, held_y_MC = y_NC.float(), held_y_MC.float()
    mean_C = y_NC.mean(dim=0)
    total = (held_y_MC - held_y_MC.mean(dim=0)).square().sum()
    if not bool(total > 0):
        return 0.0
    few = sum(part_NX.shape[1] for part_NX in x) < len(y_NC)
    square, target, readers = (_primal if few else _dual)(x, held_x, y_NC - mean_C)
    errors = [total]
    for penalty in _PENALTIES:
        ridge = square + penalty * torch.eye(len(square), device=square.device)
        weight = torch.cholesky_solve(target, torch.linalg.cholesky(ridge))
        errors.append((held_y_MC - mean_C - readers @ weight).square().sum())
    return float((torch.stack(errors).min() / total).clamp(max=1.0))


def _primal(
    x: Sequence[Tensor], held_x: Sequence[Tensor], y_NC: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Normal equations in the channels of x."""
    parts = [_centred(*pair) for pair in zip(x, held_x, strict=True)]
    x_NX, held_MX = (torch.cat(each, dim=1) for each in zip(*parts, strict=True))
    return x_NX.T @ x_NX, x_NX.T @ y_NC, held_MX


def _dual(
    x: Sequence[Tensor], held_x: Sequence[Tensor], y_NC: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same in the tokens, for x with more channels than there are tokens."""
    gram_NN, cross_MN = torch.zeros(()), torch.zeros(())
    for pair in zip(x, held_x, strict=True):
        x_NX, held_MX = _centred(*pair)
        gram_NN = gram_NN.to(x_NX.device) + x_NX @ x_NX.T
        cross_MN = cross_MN.to(x_NX.device) + held_MX @ x_NX.T
    return gram_NN, y_NC, cross_MN


def _centred(x_NX: Tensor, held_MX: Tensor) -> tuple[Tensor, Tensor]:
    """Both about the mean of x, in units of its tokens' root mean square."""
    x_NX, held_MX = x_NX.float(), held_MX.float()
    mean_X = x_NX.mean(dim=0)
    x_NX, held_MX = x_NX - mean_X, held_MX - mean_X
    scale = x_NX.square().sum(dim=1).mean().clamp(min=1e-12).rsqrt()
    return x_NX * scale, held_MX * scale
