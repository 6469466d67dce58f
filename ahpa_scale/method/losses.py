# SPDX-License-Identifier: Apache-2.0
"""How far a projected hidden state is from its target: one number per picture, in float32.

Legend: B batch, N tokens, C channels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ahpa_scale.errors import UserError


def cosine_loss(prediction_BNC: Tensor, target_BNC: Tensor) -> Tensor:
    """Negative cosine similarity, averaged over tokens (REPA, arXiv 2410.06940, eq. 8).

    Both sides become float32 *before* they are normalised: norms in half precision are the
    commonest source of NaNs in long alignment runs.

    Returns:
        ``[B]`` float32 in [-1, 1]; -1 is perfect alignment.
    """
    similarity_BN = F.cosine_similarity(prediction_BNC.float(), target_BNC.float(), dim=-1)
    return -similarity_BN.mean(dim=1)


def smooth_l1_loss(prediction_BNC: Tensor, target_BNC: Tensor, beta: float = 0.05) -> Tensor:
    """Smooth L1 distance, averaged over tokens and channels (SRA 2's choice for latent targets,
    beta 0.05).

    Returns:
        ``[B]`` float32, at least 0; 0 is perfect alignment.
    """
    loss_BNC = F.smooth_l1_loss(
        prediction_BNC.float(), target_BNC.float(), beta=beta, reduction="none"
    )
    return loss_BNC.mean(dim=(1, 2))


def squared_loss(prediction_BNC: Tensor, target_BNC: Tensor) -> Tensor:
    """Squared distance, averaged over tokens and channels: the flow's own loss.

    Returns:
        ``[B]`` float32, at least 0; 0 is perfect alignment.
    """
    return (prediction_BNC.float() - target_BNC.float()).square().mean(dim=(1, 2))


def residual_weights(residual_BN: Tensor) -> Tensor:
    """Token weights proportional to the residual: clipped to [1/4, 4] of the picture's mean, mean 1
    per picture, without gradient ("What Visual Generators Need from Teachers", RARE, 2026).

    Args:
        residual_BN: each token's distance from a perfect match, at least 0.
    """
    residual_BN = residual_BN.detach()
    share_BN = residual_BN / residual_BN.mean(dim=1, keepdim=True).clamp(min=1e-12)
    weight_BN = share_BN.clamp(0.25, 4.0)
    return weight_BN / weight_BN.mean(dim=1, keepdim=True)


ALIGNMENT_LOSSES = ("cosine", "smooth_l1", "squared")
TOKEN_WEIGHTS = ("uniform", "residual")


class AlignmentLoss:
    """One group's loss: float32 ``[B]`` from predictions and targets ``[B, N, C]``.

    Args:
        kind: ``cosine``, ``smooth_l1`` or ``squared``.
        smooth_l1_beta: beta of the smooth L1 loss.
        token_weights: ``uniform``, or ``residual`` for :func:`residual_weights`.

    Attributes:
        optimum: the loss of a perfect match.

    Raises:
        UserError: unknown kind or weights.
    """

    def __init__(
        self, kind: str, smooth_l1_beta: float = 0.05, token_weights: str = "uniform"
    ) -> None:
        for what, value, known in (
            ("alignment loss", kind, ALIGNMENT_LOSSES),
            ("token weights", token_weights, TOKEN_WEIGHTS),
        ):
            if value not in known:
                raise UserError(f"unknown {what} {value!r}; choose one of {', '.join(known)}")
        self.kind = kind
        self.beta = smooth_l1_beta
        self.uniform = token_weights == "uniform"
        self.optimum = -1.0 if kind == "cosine" else 0.0

    def __call__(self, prediction_BNC: Tensor, target_BNC: Tensor) -> Tensor:
        if self.uniform and self.kind == "cosine":
            return cosine_loss(prediction_BNC, target_BNC)
        if self.uniform and self.kind == "squared":
            return squared_loss(prediction_BNC, target_BNC)
        if self.uniform:
            return smooth_l1_loss(prediction_BNC, target_BNC, self.beta)
        loss_BN = self._tokens(prediction_BNC.float(), target_BNC.float())
        return (residual_weights(loss_BN - self.optimum) * loss_BN).mean(dim=1)

    def _tokens(self, prediction_BNC: Tensor, target_BNC: Tensor) -> Tensor:
        if self.kind == "cosine":
            return -F.cosine_similarity(prediction_BNC, target_BNC, dim=-1)
        if self.kind == "squared":
            return (prediction_BNC - target_BNC).square().mean(dim=2)
        loss_BNC = F.smooth_l1_loss(prediction_BNC, target_BNC, beta=self.beta, reduction="none")
        return loss_BNC.mean(dim=2)
