# SPDX-License-Identifier: Apache-2.0
"""The order of samples: the same for all ranks and nodes, and even mixtures."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streaming.base.batching.random import generate_work_random_batching
from streaming.base.world import World

from ahpa_scale.data.order import Order, Part, deal

BLOCK = 1 << 18


def part(sizes: list[int], first: int = 0, count: int | None = None) -> Part:
    total = sum(sizes)
    return Part(first + np.arange(total), np.array(sizes), total if count is None else count)


def order(*parts: Part, nodes: int = 1, shuffle: bool = True) -> Order:
    stride = max(int(part.indices_K[-1]) for part in parts) + 1
    return Order(parts, stride, nodes, shuffle, seed=3, block=BLOCK)


def in_turn(dealt: np.ndarray, batch_size: int) -> list[list[int]]:
    """The global batches, from what each worker reads in turn: rank after rank."""
    _, _, workers, batches, _ = dealt.shape
    found = []
    for batch in range(batches):
        for worker in range(workers):
            each = dealt[:, :, worker, batch].ravel()
            found.append(each[each >= 0].tolist())
    return [batch for batch in found if batch]


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    nodes=st.sampled_from([1, 2, 4]),
    world=st.sampled_from([(1, 1, 1), (1, 4, 2), (2, 1, 1), (2, 2, 3), (4, 1, 2)]),
    shuffle=st.booleans(),
    epoch=st.integers(0, 3),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_a_single_set_keeps_the_order_that_streaming_gives_it(
    sizes, nodes, world, shuffle, epoch, data
):
    """So runs of earlier versions go on as they began."""
    total = sum(sizes)
    if total < 16:
        sizes, total = [*sizes, 16], total + 16
    physical, ranks, workers = world
    together = physical * ranks
    batch_size = data.draw(st.integers(1, max(1, total // together // 2)))
    behind = data.draw(st.integers(0, total // together // batch_size)) * together * batch_size
    streaming = SimpleNamespace(
        batch_size=batch_size, num_canonical_nodes=nodes, partition_algo="relaxed",
        epoch_size=total, initial_physical_nodes=None, shuffle=shuffle, shuffle_algo="py1e",
        shuffle_seed=3, shuffle_block_size=BLOCK,
        resample_streams=lambda epoch: (np.array(sizes), np.arange(total)),
    )  # fmt: skip
    there = World(physical, ranks, workers, 0)
    theirs = generate_work_random_batching(streaming, there, epoch, behind)
    whole = order(part(sizes), nodes=nodes, shuffle=shuffle).of_pass(epoch)
    ours = deal(whole, behind, there, batch_size, drop_last=True)
    ours = np.where(ours >= 0, ours - epoch * total, -1)
    full = in_turn(ours, batch_size)
    assert all(len(batch) == together * batch_size for batch in full)
    # Theirs repeats samples where the canonical nodes' parts are not equal, at the very end.
    assert full == in_turn(theirs, batch_size)[: len(full)]
    each = batch_size * together
    assert len(full) == (total // nodes * nodes - behind) // each or behind > total // nodes * nodes


@given(
    nodes=st.integers(1, 3), ranks=st.integers(1, 4), workers=st.integers(1, 3),
    done=st.integers(0, 3),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_global_batches_are_the_same_for_any_number_of_nodes_ranks_and_workers(
    nodes, ranks, workers, done
):
    mix = order(part([30, 50], count=90), part([41], first=80, count=30))
    whole, size = mix.of_pass(5), 12 * nodes * ranks
    dealt = deal(whole, done * size, World(nodes, ranks, workers, 0), 12, drop_last=True)
    alone = [sorted(whole[i : i + size].tolist()) for i in range(done * size, len(whole), size)]
    found = [sorted(batch) for batch in in_turn(dealt, 12)]
    assert found == [batch for batch in alone if len(batch) == size]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("nodes", [1, 4])
def test_a_mixture_holds_its_proportion_in_any_stretch(nodes, shuffle):
    mix = order(part([500] * 3, count=3000), part([400, 600], first=1500, count=1000),
                nodes=nodes, shuffle=shuffle)  # fmt: skip
    for number in (0, 7):
        of_first = mix.of_pass(number) % mix.stride < 1500
        assert of_first.sum() == 3000
        share = np.cumsum(of_first) - 0.75 * np.arange(1, 4001)
        assert share.max() - share.min() <= 4 * nodes


def test_sets_go_on_where_a_pass_has_ended_and_no_place_comes_twice():
    mix = order(part([40, 30], count=30), part([20], first=70, count=50))
    places = np.concatenate([mix.of_pass(number) for number in range(7)])
    assert len(set(places.tolist())) == len(places)
    turns, indices = np.divmod(places, mix.stride)
    for first, size, read in ((0, 70, 7 * 30), (70, 20, 7 * 50)):
        own = (first <= indices) & (indices < first + size)
        times = np.bincount(indices[own] - first, minlength=size)
        assert times.sum() == read
        assert times.max() - times.min() <= 1
        assert (np.diff(turns[own]) >= 0).all()
    alone = order(part([40, 30])).of_pass(1) % 70
    own = indices < 70
    np.testing.assert_array_equal(indices[own][70:140], alone)


def test_sets_of_equal_size_are_not_shuffled_alike():
    mix = order(part([60, 60]), part([60, 60], first=120))
    indices = mix.of_pass(0) % mix.stride
    first, second = (indices[indices < 120], indices[indices >= 120] - 120)
    assert (first == second).mean() < 0.1


@given(
    kept=st.sets(st.integers(0, 99), min_size=8), repeat=st.sampled_from([1, 2]),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_what_is_left_out_never_comes_and_all_else_does(kept, repeat):
    indices = np.array(sorted(kept))
    sizes = np.bincount(indices // 20, minlength=5)
    one = Part(indices, sizes[sizes > 0], repeat * len(kept))
    found = Order([one], 100, 1, True, seed=1, block=BLOCK).of_pass(2) % 100
    assert sorted(found.tolist()) == sorted([*kept] * repeat)
