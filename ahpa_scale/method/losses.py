# SPDX-License-Identifier: Apache-2.0
"""How far a projected hidden state is from its target: one number per picture, in float32.

Legend: B batch, N tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor


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


ALIGNMENT_LOSSES = ("cosine", "smooth_l1")


def get_alignment_loss(kind: str, smooth_l1_beta: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns the loss named `kind`.

    Raises:
        ValueError: unknown kind.
    """
    if kind == "cosine":
        return cosine_loss
    if kind == "smooth_l1":
        return partial(smooth_l1_loss, beta=smooth_l1_beta)
    raise ValueError(
        f"unknown alignment loss {kind!r}; choose one of {', '.join(ALIGNMENT_LOSSES)}"
    )
