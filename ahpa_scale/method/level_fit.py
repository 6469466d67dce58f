# SPDX-License-Identifier: Apache-2.0
"""Fits the codes of a data set's levels to a sample of folded tokens.

Legend: N tokens, C channels, P positions of a token, D = C * P, F directions of the token mean, X
context of the level, E context of all coarser levels, K dimensions of the level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ahpa_scale.errors import UserError
from ahpa_scale.method.level_codec import LARGEST_CODE, LevelCode
from ahpa_scale.method.whitening import VARIANCE_FLOOR

#: What a level keeps beside its token mean: what coarser levels leave of it (``residual``), or the
#: level without its token mean (``detail``).
RECIPES = ("residual", "detail")
#: Share of a level's dimensions that its token mean gets.
MEAN_SHARE = 0.25
#: Principal components of a level from which finer levels are predicted.
CONTEXT = 192
#: Fewest tokens of the sample for each dimension, and for each predictor of a level. With fewer, a
#: fit describes the sample and not the pictures.
_TOKENS_EACH = 4
#: Share of int8 codes that may be cut off at the largest.
_CLIPPED = 1e-4
_RIDGE = 1e-3
_SEED = 0


@dataclass(frozen=True)
class FittedLevel:
    """A level's code on the sample that it was fitted to.

    Attributes:
        code: the code.
        context_NX: the level's context on the sample, float32.
    """

    code: LevelCode
    context_NX: Tensor


def fit_levels(
    tokens: Mapping[str, Tensor], dims: Mapping[str, int], recipe: str
) -> dict[str, FittedLevel]:
    """Fits every level, from coarse to fine.

    A plain PCA of a fine level would spend nearly all dimensions on what coarser levels say too. So
    a quarter of them hold the token mean, and the others the principal components of the rest. The
    coarsest level is reduced by a plain PCA.

    Args:
        tokens: level, fine to coarse -> float32 ``[N, C, P]``, the same tokens of all levels.
        dims: level -> most dimensions kept; there are fewer if the sample is small.
        recipe: one of RECIPES.

    Returns:
        Level -> fitted code, fine to coarse.

    Raises:
        UserError: a level never varies; the message names it.
    """
    fitted: dict[str, FittedLevel] = {}
    finest = next(iter(tokens))
    predictors = len(tokens[finest]) // _TOKENS_EACH
    context = min(CONTEXT, predictors // max(1, len(tokens) - 1))
    for level in reversed([*tokens]):
        told = [fitted[name].context_NX for name in tokens if name in fitted]
        coarser_NE = torch.cat(told, dim=1) if told else None
        # Nothing is predicted from the finest level.
        width = 0 if level == finest else context
        try:
            fitted[level] = fit_level(tokens[level], coarser_NE, dims[level], recipe, width)
        except UserError as error:
            raise UserError(f"level {level!r} {error}") from None
    return {level: fitted[level] for level in tokens}


def fit_level(
    token_NCP: Tensor, coarser_NE: Tensor | None, dims: int, recipe: str, context: int
) -> FittedLevel:
    """Fits one level.

    Args:
        token_NCP: float32 sample.
        coarser_NE: context of the same tokens in all coarser levels, None for the coarsest level.
        dims: most dimensions kept.
        recipe: one of RECIPES.
        context: most principal components that finer levels are predicted from.

    Raises:
        UserError: the level never varies.
    """
    count, channels, area = token_NCP.shape
    mean_CP = token_NCP.mean(dim=0)
    centred_NCP = token_NCP - mean_CP
    centred_ND = centred_NCP.flatten(1)
    if not bool(centred_ND.square().mean() > 1e-12 * mean_CP.square().mean()):
        raise UserError("never varies over the sampled pictures: leave it out")
    dims = min(dims, channels * area, max(1, count // _TOKENS_EACH))
    context = min(context, channels * area)
    principal_DX = _principal(centred_ND, max(context, dims if coarser_NE is None else 0))
    if coarser_NE is None:
        direction_DK = principal_DX[:, :dims]
        told_EK = direction_DK.new_zeros(0, dims)
        value_NK = centred_ND @ direction_DK
    else:
        direction_DK, told_EK = _with_token_mean(centred_NCP, coarser_NE, dims, recipe)
        value_NK = centred_ND @ direction_DK - coarser_NE @ told_EK
    scale_K = _whitening_scale(value_NK)
    context_NX = centred_ND @ principal_DX[:, :context]
    scale_X = _whitening_scale(context_NX)
    matrix_DS = torch.cat([direction_DK * scale_K, principal_DX[:, :context] * scale_X], dim=1)
    code = LevelCode(
        weight_SCpp=matrix_DS.T.unflatten(1, (channels, math.isqrt(area), -1)).contiguous(),
        bias_S=-(mean_CP.flatten() @ matrix_DS),
        prediction_EK=(told_EK * scale_K).contiguous(),
        step_K=_steps(value_NK * scale_K),
    )
    return FittedLevel(code, context_NX * scale_X)


def _whitening_scale(value_NK: Tensor) -> Tensor:
    """What brings channels with mean 0 to variance 1, small ones to less."""
    variance_K = value_NK.square().mean(dim=0)
    if not len(variance_K):
        return variance_K
    return variance_K.clamp(min=VARIANCE_FLOOR * float(variance_K.max())).rsqrt()


def _with_token_mean(
    centred_NCP: Tensor, coarser_NE: Tensor, dims: int, recipe: str
) -> tuple[Tensor, Tensor]:
    """Orthonormal directions [D, K], the token mean's first, and what the context predicts of the
    values along them [E, K]: nothing that is subtracted from the token mean.
    """
    channels, area = centred_NCP.shape[1:]
    centred_ND = centred_NCP.flatten(1)
    if recipe == "detail" and area == 1:
        direction_DK = _principal(centred_ND, dims)  # the token mean is the level
        return direction_DK, coarser_NE.new_zeros(coarser_NE.shape[1], dims)
    mean_DF = _mean_directions(centred_NCP, min(channels, math.ceil(MEAN_SHARE * dims)))
    if recipe == "residual":
        told_ED = _ridge(coarser_NE, centred_ND)
        left_ND = centred_ND - coarser_NE @ told_ED
    else:
        told_ED = coarser_NE.new_zeros(coarser_NE.shape[1], centred_ND.shape[1])
        left_ND = (centred_NCP - centred_NCP.mean(dim=2, keepdim=True)).flatten(1)
    left_ND = left_ND - (left_ND @ mean_DF) @ mean_DF.T
    rest_DK = _principal(left_ND, dims - mean_DF.shape[1])
    told_EK = torch.cat([torch.zeros_like(told_ED @ mean_DF), told_ED @ rest_DK], dim=1)
    return torch.cat([mean_DF, rest_DK], dim=1), told_EK


def _mean_directions(centred_NCP: Tensor, count: int) -> Tensor:
    """Leading directions of the token mean, as orthonormal columns [D, F]."""
    area = centred_NCP.shape[2]
    direction_CF = _principal(centred_NCP.mean(dim=2), count)
    return (direction_CF / math.sqrt(area)).repeat_interleave(area, dim=0)


def _principal(value_ND: Tensor, count: int) -> Tensor:
    """Leading principal directions [D, K] by a randomised range finder (Halko, Martinsson & Tropp
    2011, arXiv 0909.4061), never a D x D covariance. Signs are fixed, so machines agree on them.
    """
    if not count:
        return value_ND.new_zeros(value_ND.shape[1], 0)
    with torch.random.fork_rng([value_ND.device] if value_ND.is_cuda else []):
        torch.manual_seed(_SEED)
        rank = min(*value_ND.shape, count + 16)
        _, _, direction_DK = torch.svd_lowrank(value_ND, q=rank, niter=4)
    direction_DK = direction_DK[:, :count]
    largest_1K = direction_DK.abs().argmax(dim=0, keepdim=True)
    return direction_DK * direction_DK.gather(0, largest_1K).sign()


def _ridge(x_NE: Tensor, y_ND: Tensor) -> Tensor:
    """Ridge regression of y on x, both with mean 0; directions of x count alike."""
    scale_E = x_NE.square().mean(dim=0).clamp(min=1e-12).rsqrt()
    unit_NE = x_NE * scale_E
    square_EE = unit_NE.T @ unit_NE
    square_EE.diagonal().add_(_RIDGE * len(x_NE))
    weight_ED = torch.cholesky_solve(unit_NE.T @ y_ND, torch.linalg.cholesky(square_EE))
    return scale_E[:, None] * weight_ED


def _steps(value_NK: Tensor) -> Tensor:
    """The int8 step of each channel: few values of the sample lie beyond the largest code."""
    kept = max(1, math.ceil(len(value_NK) * (1 - _CLIPPED)))
    limit_K = value_NK.abs().kthvalue(kept, dim=0).values
    return limit_K.clamp(min=1e-3) / LARGEST_CODE
