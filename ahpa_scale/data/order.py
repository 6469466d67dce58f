# SPDX-License-Identifier: Apache-2.0
"""The order of samples in each pass over one or several data sets, and who reads which of them.

Shapes: N samples of a pass, P nodes, R ranks of a node, W workers of a rank, M batches of a worker,
B samples of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from streaming.base.shuffle import get_shuffle
from streaming.base.world import World

#: Lies between the seeds of a run's sets: sets of equal size would otherwise be shuffled alike.
_APART = 1_000_003
_SHUFFLE = "py1e"


@dataclass(frozen=True)
class Part:
    """What a pass takes from one set.

    Attributes:
        indices_K: the run's indices of the set's samples, ascending, without skipped ones.
        sizes_S: how many of them each shard holds; shards without any are left out.
        count: samples that a pass takes. A pass that takes fewer than there are goes on where the
            one before has ended, and one that takes more begins anew within the pass.
    """

    indices_K: NDArray[np.int64]
    sizes_S: NDArray[np.int64]
    count: int


@dataclass(frozen=True)
class Order:
    """The order of a run's samples.

    Each set is read in the order that it would have alone, over and over, whatever the passes of
    the run. So no sample comes a second time before all others of its set have come. The
    sets are interleaved evenly: any stretch of a pass holds them in their proportion, but for two
    samples of each set (times `nodes`).

    Args:
        parts: the sets.
        stride: number of all sets' samples.
        nodes: nodes that the order is laid out for: node n of them reads samples n, n + nodes, ...
            of a pass, which lie in as few shards as possible.
        shuffle: whether each pass has an order of its own.
        seed: seed of the order.
        block: samples among which one is moved.
    """

    parts: Sequence[Part]
    stride: int
    nodes: int
    shuffle: bool
    seed: int
    block: int

    def of_pass(self, number: int) -> NDArray[np.int64]:
        """The places of a pass, [N]: a sample's index, plus `stride` times the number of times that
        its set has been read before. So each place of a run is unique.
        """
        taken = [self._taken(place, part, number) for place, part in enumerate(self.parts)]
        if len(taken) == 1:
            return taken[0].ravel()
        moments = []
        for place, found_MP in enumerate(taken):
            rng = np.random.default_rng([self.seed, number, place])
            # Random within its step: a regular pattern would give one rank all of a set.
            within = rng.random(len(found_MP)) if self.shuffle else 0.5
            moments.append((np.arange(len(found_MP)) + within) / len(found_MP))
        order = np.argsort(np.concatenate(moments), kind="stable")
        return np.concatenate(taken)[order].ravel()

    def _taken(self, place: int, part: Part, number: int) -> NDArray[np.int64]:
        """A part's places in a pass, [count / nodes, nodes]."""
        each, own = part.count // self.nodes, len(part.indices_K) // self.nodes
        first = number * each
        rounds = range(first // own, -(-(first + each) // own))
        read = [self._own(place, part, turn) + turn * self.stride for turn in rounds]
        skipped = first - rounds.start * own
        return np.concatenate(read).reshape(-1, self.nodes)[skipped : skipped + each]

    def _own(self, place: int, part: Part, turn: int) -> NDArray[np.int64]:
        """The indices of a set in the order that it has alone. What does not fill all nodes is left
        out: less than one sample a node, other ones in each turn.
        """
        count = len(part.indices_K)
        starts_P = np.arange(self.nodes) * count // self.nodes
        rows = (starts_P + np.arange(count // self.nodes)[:, None]).ravel()
        if self.shuffle:
            seed = self.seed + _APART * place
            rows = get_shuffle(_SHUFFLE, part.sizes_S, self.nodes, seed, turn, self.block)[rows]
        return part.indices_K[rows]


def deal(
    order_N: NDArray[np.int64], behind: int, world: World, batch_size: int, drop_last: bool
) -> NDArray[np.int64]:
    """Deals a pass to the workers. The global batches do not depend on who reads them.

    Args:
        order_N: the pass.
        behind: samples of it that were read before.
        world: nodes, ranks and workers.
        batch_size: samples of a rank's batch.
        drop_last: whether to leave out what does not fill a batch on all ranks. If not, the last
            sample is repeated until all ranks have equally many.

    Returns:
        Places [P, R, W, M, B], with -1 where a batch is not full.
    """
    nodes, ranks, workers = world.num_nodes, world.ranks_per_node, world.workers_per_rank
    left = order_N[behind:]
    if drop_last:
        left = left[: whole_batches(len(left), nodes * ranks, batch_size)]
    elif len(left):
        left = np.concatenate([left, np.repeat(left[-1:], -len(left) % (nodes * ranks))])
    each_PRK = left.reshape(-1, ranks, nodes).transpose(2, 1, 0)
    short = -each_PRK.shape[2] % (workers * batch_size)
    padded = np.pad(each_PRK, ((0, 0), (0, 0), (0, short)), constant_values=-1)
    return padded.reshape(nodes, ranks, -1, workers, batch_size).transpose(0, 1, 3, 2, 4)


def whole_batches(count: int, ranks: int, batch_size: int) -> int:
    """How many of `count` samples fill batches on all ranks."""
    return count // (ranks * batch_size) * ranks * batch_size
