# SPDX-License-Identifier: Apache-2.0
"""A data set's first samples in order, shared by the ranks in batches of equal number.

Shapes: B batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate


class Share:
    """One rank's share of a data set's first samples.

    Every rank makes equally many batches. A rank that has too few samples repeats its last one,
    which then is not ``counted``. streaming's own division repeats samples and doesn't say so.

    Args:
        samples: gives sample i by its index, as our streams do.
        count: number of samples to share, at least 1.
        batch_size: samples per batch.
        rank, ranks: this rank and their number.
        labels: the model's label for each label of the set; None if they are the same.
    """

    def __init__(
        self,
        samples: Any,
        count: int,
        batch_size: int,
        *,
        rank: int = 0,
        ranks: int = 1,
        labels: Sequence[int] | None = None,
    ) -> None:
        self._samples, self._labels = samples, labels
        each = -(-count // ranks)
        self._indices = [rank * each + place for place in range(each)]
        self._last, self._batch_size = count - 1, batch_size

    def __iter__(self) -> Iterator[Mapping[str, Tensor]]:
        """``moments``, ``index``, ``label`` and ``counted``, bool [B]; one pass, in order."""
        for first in range(0, len(self._indices), self._batch_size):
            indices = self._indices[first : first + self._batch_size]
            batch = default_collate([self._sample(min(n, self._last)) for n in indices])
            yield {**batch, "counted": torch.tensor([n <= self._last for n in indices])}

    def _sample(self, index: int) -> dict[str, Any]:
        sample = self._samples[index]
        label = sample["label"] if self._labels is None else self._labels[sample["label"]]
        return {"moments": sample["moments"], "index": sample["index"], "label": label}
