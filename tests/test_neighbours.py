# SPDX-License-Identifier: Apache-2.0
"""Which ranks share a host's memory, whoever started them."""

from __future__ import annotations

import pytest

from ahpa_scale.data.neighbours import place_among
from ahpa_scale.errors import UserError


@pytest.mark.parametrize(
    ("memories", "places"),
    [
        ("aaaa", [(0, 4), (1, 4), (2, 4), (3, 4)]),  # two launchers on one host
        ("aabb", [(0, 2), (1, 2), (0, 2), (1, 2)]),
        ("abcd", [(0, 1)] * 4),  # a container for each rank
    ],
)
def test_ranks_of_one_memory_count_together(memories, places):
    assert [place_among(memories, rank) for rank in range(4)] == places


@pytest.mark.parametrize("memories", ["abab", "aaba", "aab", "abb", "abcc"])
def test_ranks_that_streaming_cant_count_earn_one_line(memories):
    for rank in range(len(memories)):
        with pytest.raises(UserError, match="must follow one another, equally many everywhere"):
            place_among(memories, rank)
