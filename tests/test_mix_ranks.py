# SPDX-License-Identifier: Apache-2.0
"""The order of a mixture on 1, 2 and 4 ranks, and after a resume."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ranks import leave, meet
from s3_server import free_ports
from tiny_sets import save_set

from ahpa_scale.data.mix import MixCard, Wanted, read_mix
from ahpa_scale.data.stream import build_loader
from benchmarks.ranks import start_ranks

#: Samples of a global batch, and passes that are read.
TOGETHER, PASSES = 16, 4
#: A pass takes 765 samples: whole batches leave 13 over.
FIRST, SECOND, SKIPPED = 500, 270, range(40, 45)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("mixture")
    save_set(root / "first", FIRST)
    save_set(root / "second", SECOND, value=1)
    (root / "skip.txt").write_text("\n".join(map(str, SKIPPED)))
    return root


def mixture(folder: Path) -> MixCard:
    skip = str(folder / "skip.txt")
    sets = [Wanted(str(folder / "first"), proportion=3)]
    return read_mix([*sets, Wanted(str(folder / "second"), proportion=1, skip=skip)])


def read(loader: Any, passes: int) -> Iterator[tuple[int, int]]:
    """Index and epoch of each sample."""
    for batch in itertools.chain.from_iterable(loader for _ in range(passes)):
        yield from zip(batch["index"].tolist(), batch["epoch"].tolist(), strict=True)


def on_rank(rank: int, ranks: int, port: int, folder: str, state: dict[str, Any]) -> None:
    """Reads all passes, and then with another loader what is left after a resume."""
    meet(rank, port, ranks)
    found = []
    for resumes, passes in ((False, PASSES), (True, PASSES - 2)):
        loader = build_loader(
            mixture(Path(folder)), batch_size=TOGETHER // ranks, levels=(), seed=5, num_workers=1
        )
        if resumes:
            loader.load_state_dict(state)
        found.append(list(read(loader, passes)))
    Path(folder, f"rank{rank}.json").write_text(json.dumps(found))
    leave()


def read_by(ranks: int, folder: Path, state: dict[str, Any]) -> list[list[tuple[int, int]]]:
    """What several ranks read, in the order of the samples: all, and after a resume."""
    start_ranks(on_rank, (ranks, free_ports(1)[0], str(folder), state), ranks)
    each = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(ranks)]
    return [
        [tuple(pair) for pair in itertools.chain.from_iterable(zip(*parts, strict=True))]
        for parts in zip(*each, strict=True)
    ]


@pytest.fixture(scope="module")
def alone(folder) -> tuple[list[tuple[int, int]], dict[str, Any], int]:
    """What one rank reads, its state in the middle of the third pass, and the samples before."""
    loader = build_loader(mixture(folder), batch_size=TOGETHER, levels=(), seed=5)
    found = list(read(loader, 2))
    third = iter(loader)
    for _ in range(11):
        batch = next(third)
        found += list(zip(batch["index"].tolist(), batch["epoch"].tolist(), strict=True))
    state, until = loader.state_dict(), len(found)
    for batch in third:
        found += list(zip(batch["index"].tolist(), batch["epoch"].tolist(), strict=True))
    return [*found, *read(loader, PASSES - 3)], state, until


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_order_is_the_same_on_any_number_of_ranks_and_after_a_resume(alone, folder, ranks):
    found, state, until = alone
    kept = FIRST + SECOND - len(SKIPPED)
    assert len(found) == PASSES * (kept // TOGETHER * TOGETHER) > 2000
    assert len(set(found)) == len(found)
    for length in (200, 2000, len(found)):
        share = sum(index < FIRST for index, _ in found[:length]) / length
        assert abs(share - 0.75) < 0.01
    assert state["epoch"] == 2
    if ranks == 1:
        resumed = build_loader(mixture(folder), batch_size=TOGETHER, levels=(), seed=5)
        resumed.load_state_dict(json.loads(json.dumps(state)))
        assert list(read(resumed, PASSES - 2)) == found[until:]
    else:
        assert read_by(ranks, folder, state) == [found, found[until:]]
