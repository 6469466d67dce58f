# SPDX-License-Identifier: Apache-2.0
"""What the alignment does per level and noise level, gathered on the device and read by the host
only at intervals.

Legend: B batch, G levels, T bins of the noise level t.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ahpa_scale.method.rank_sums import RankSums

LOSS, SQUARE, WEIGHT = range(3)


def one_hot_bins(t_B: Tensor, num_bins: int) -> Tensor:
    """One-hot bin of each noise level, float32 ``[B, T]``; equal bins of t in [0, 1]."""
    index_B = (t_B * num_bins).long().clamp_(0, num_bins - 1)
    # torch's one_hot checks its input's range first, on the host.
    return (index_B.unsqueeze(1) == torch.arange(num_bins, device=t_B.device)).float()


class BatchMean(RankSums):
    """Mean over the pictures of the last ended batch, kept on the device until it is read.

    Attributes:
        mean: a scalar, NaN where the batch's mean was not finite; None before the first batch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mean: Tensor | None = None

    @torch.no_grad()
    def observe(self, mean: Tensor, pictures: int) -> None:
        """Adds one micro-batch's mean, a scalar."""
        self.add(torch.stack([mean.float() * pictures, mean.new_full((), pictures).float()]))

    def settle(self, *sums: Tensor) -> None:
        """Replaces the mean of the batch before."""
        (total,) = sums
        self.mean = total[0] / total[1]


class BinnedMean(RankSums):
    """Running mean of one number per picture and level, in each t-bin.

    Args:
        num_levels: G.
        num_bins: T.
        momentum: share of the old mean kept by each batch.
    """

    def __init__(self, num_levels: int, num_bins: int = 10, momentum: float = 0.99) -> None:
        super().__init__()
        self.num_bins = num_bins
        self.momentum = momentum
        self.mean_GT: Tensor
        self.seen_GT: Tensor
        self.register_buffer("mean_GT", torch.zeros(num_levels, num_bins))
        self.register_buffer("seen_GT", torch.zeros(num_levels, num_bins))

    @torch.no_grad()
    def observe(self, t_B: Tensor, value_BG: Tensor, rows: Sequence[int] | None = None) -> None:
        """Adds one micro-batch; `rows` names the levels that the columns belong to, None for all
        of them.
        """
        bin_BT = one_hot_bins(t_B, self.num_bins)
        sum_GT = value_BG.T @ bin_BT
        count_GT = bin_BT.sum(dim=0).expand_as(sum_GT).clone()
        if rows is not None:
            whole = torch.zeros_like(self.mean_GT), torch.zeros_like(self.mean_GT)
            for row, level in enumerate(rows):
                whole[0][level], whole[1][level] = sum_GT[row], count_GT[row]
            sum_GT, count_GT = whole
        self.add(sum_GT, count_GT)

    def settle(self, *sums: Tensor) -> None:
        """Moves the running means of the bins that saw a picture."""
        sum_GT, count_GT = sums
        filled_GT = (count_GT > 0).float()
        step_GT = filled_GT * (1 / (self.seen_GT + 1)).clamp(min=1 - self.momentum)
        self.mean_GT.lerp_(sum_GT / count_GT.clamp(min=1), step_GT)
        self.seen_GT.add_(filled_GT)


class BinnedStatistics(RankSums):
    """Running mean and variance of each level's loss in each t-bin, and sums for the log.

    Three stages keep micro-batches and ranks from changing a result: `observe` only adds to pending
    sums during the forward pass, `commit` (once a batch) adds them up over the ranks and moves the
    running moments, `read` brings the sums since the last reading to the host. Only the running
    moments are part of the state dict.

    Args:
        num_levels: G.
        num_bins: T, equal bins of t in [0, 1].
        momentum: share of the old running moments kept by each commit.
    """

    def __init__(self, num_levels: int, num_bins: int = 10, momentum: float = 0.99) -> None:
        super().__init__()
        self.num_bins = num_bins
        self.momentum = momentum
        shape = (num_levels, num_bins)
        self.mean_GT: Tensor
        self.var_GT: Tensor
        self.seen_T: Tensor
        self.register_buffer("mean_GT", torch.zeros(shape))
        self.register_buffer("var_GT", torch.zeros(shape))
        self.register_buffer("seen_T", torch.zeros(num_bins))
        self._since_read: tuple[Tensor, Tensor] | None = None

    def bins(self, t_B: Tensor) -> Tensor:
        """One-hot bin of each noise level, float32 ``[B, T]``."""
        return one_hot_bins(t_B, self.num_bins)

    @torch.no_grad()
    def observe(self, t_B: Tensor, loss_BG: Tensor, weight_BG: Tensor) -> None:
        """Adds one micro-batch to the pending sums; no communication, no host sync."""
        bin_BT = self.bins(t_B)
        values_XBG = torch.stack([loss_BG, loss_BG.square(), weight_BG])
        self.add(torch.einsum("xbg,bt->xgt", values_XBG, bin_BT), bin_BT.sum(dim=0))

    @torch.no_grad()
    def standardise(self, t_B: Tensor, loss_BG: Tensor) -> Tensor:
        """Each level's loss, standardised by its running mean and deviation in that t-bin; 0 where
        nothing is known yet.
        """
        bin_BT = self.bins(t_B)
        mean_BG = bin_BT @ self.mean_GT.T
        std_BG = (bin_BT @ self.var_GT.T).sqrt()
        known_B1 = (bin_BT @ self.seen_T).clamp(max=1).unsqueeze(1)
        return known_B1 * ((loss_BG - mean_BG) / (std_BG + 1e-3)).clamp(-5, 5)

    def settle(self, *sums: Tensor) -> None:
        """Moves the running moments and keeps the sums for `read`."""
        sums_XGT, count_T = sums
        self._move_moments(sums_XGT, count_T)
        if self._since_read is None:
            self._since_read = (sums_XGT, count_T)
        else:
            self._since_read = (self._since_read[0] + sums_XGT, self._since_read[1] + count_T)

    def _move_moments(self, sums_XGT: Tensor, count_T: Tensor) -> None:
        filled_T = (count_T > 0).float()
        mean_GT = sums_XGT[LOSS] / count_T.clamp(min=1)
        # The spread is taken around the running mean, so a bin with a single picture has one too.
        centre_GT = torch.where(self.seen_T > 0, self.mean_GT, mean_GT)
        square_GT = sums_XGT[SQUARE] / count_T.clamp(min=1)
        var_GT = square_GT - 2 * centre_GT * mean_GT + centre_GT.square()
        # Bias-corrected momentum: the first batches count in full instead of being pulled towards
        # the zero start.
        step_T = filled_T * torch.maximum(
            1 / (self.seen_T + 1), torch.full_like(self.seen_T, 1 - self.momentum)
        )
        self.mean_GT.lerp_(mean_GT, step_T.expand_as(mean_GT))
        self.var_GT.lerp_(var_GT.clamp(min=0), step_T.expand_as(var_GT))
        self.seen_T.add_(filled_T)

    @property
    def unread(self) -> bool:
        """Whether anything was committed since the last reading."""
        return self._since_read is not None

    def read(self) -> dict[str, list]:
        """Means since the last reading, as host values; the one place that waits for the device.

        Returns:
            ``weight_GT`` and ``loss_GT`` (None in bins that saw no picture) and ``count_T``.
        """
        if self._since_read is None:
            empty = [[None] * self.num_bins for _ in range(self.mean_GT.shape[0])]
            return {"weight_GT": empty, "loss_GT": empty, "count_T": [0] * self.num_bins}
        sums_XGT, count_T = (value.cpu() for value in self._since_read)
        self._since_read = None
        counts = [int(count) for count in count_T.tolist()]

        def means(which: int) -> list[list[float | None]]:
            return [
                [total / count if count else None for total, count in zip(row, counts, strict=True)]
                for row in sums_XGT[which].tolist()
            ]

        return {"weight_GT": means(WEIGHT), "loss_GT": means(LOSS), "count_T": counts}
