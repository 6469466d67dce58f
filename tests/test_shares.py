# SPDX-License-Identifier: Apache-2.0
"""Held-out samples shared by ranks: each counts once, and all ranks make equally many batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ahpa_scale.data.shares import Share
from ahpa_scale.evaluation.heldout import heldout_flow
from benchmarks.ranks import Latents, Task, build_generator


@pytest.mark.parametrize(("count", "ranks"), [(64, 1), (43, 2), (43, 4), (3, 4), (1, 2)])
def test_every_sample_counts_once(count, ranks):
    shares = [[*Share(Latents(), count, 5, rank=r, ranks=ranks)] for r in range(ranks)]
    assert len({len(batches) for batches in shares}) == 1
    assert len({tuple(len(batch["index"]) for batch in batches) for batches in shares}) == 1
    counted = [
        index
        for batches in shares
        for batch in batches
        for index in batch["index"][batch["counted"]].tolist()
    ]
    assert counted == [*range(count)]


def test_labels_are_the_models_own():
    (batch,) = Share(Latents(), 10, 10, labels=[9 - label for label in range(10)])
    assert batch["label"].tolist() == [*range(9, -1, -1)]


def test_the_ranks_together_measure_what_one_process_does():
    generator = build_generator(Task("alone"))
    alone = heldout_flow(generator, Share(Latents(), 43, 64), 5)
    sums: list[list[torch.Tensor]] = []
    for rank in range(4):
        own: list[torch.Tensor] = []

        def note(tensor: torch.Tensor, own: list[torch.Tensor] = own) -> None:
            own.append(tensor.clone())
            tensor.fill_(1.0)  # what one rank's share makes of it doesn't matter here

        told: Any = heldout_flow(
            generator, Share(Latents(), 43, 3, rank=rank, ranks=4), 5, add_up=note
        )
        assert told["flow"] == 1.0
        sums.append(own)
    sum_T, count_T = (torch.stack(each).sum(0) for each in zip(*sums, strict=True))
    assert count_T.sum() == 43
    assert (sum_T / count_T).tolist() == pytest.approx(alone["flow_t"], rel=1e-5)
