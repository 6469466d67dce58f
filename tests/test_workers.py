# SPDX-License-Identifier: Apache-2.0
"""What a loader's worker raises, as its rank sees it."""

from __future__ import annotations

import errno
import traceback

import pytest
from torch.utils.data import Dataset

from ahpa_scale.data.fetching import CacheError
from ahpa_scale.data.whole import ShardError
from ahpa_scale.data.workers import Loader
from ahpa_scale.unreachable import UnreachableError


class OddError(Exception):
    """Torch can't make another one of it."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}")


class Fails(Dataset):
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        raise self.error


def met(error: Exception) -> Exception:
    try:
        next(iter(Loader(Fails(error), batch_size=2, num_workers=1)))
    except Exception as found:
        return found
    raise AssertionError("no error")


@pytest.mark.parametrize(
    ("error", "first"),
    [
        (RuntimeError("cannot read\n  this\nnor that"), "RuntimeError: nor that"),
        (RuntimeError("cannot read\nthis"), "RuntimeError: cannot read"),
        (KeyError("label"), "KeyError: 'label'"),
        (OSError(errno.ENOSPC, "No space left"), "OSError: [Errno 28] No space left"),
        (OddError(1, 2), "RuntimeError: test_workers.OddError: 1 and 2"),
    ],
)
def test_a_fault_is_told_by_its_cause_first_and_its_traceback_after(error: Exception, first: str):
    told = "".join(traceback.format_exception_only(met(error))).splitlines()
    assert told[0] == first
    assert any("in __getitem__" in line for line in told), told


@pytest.mark.parametrize(
    "error",
    [
        ShardError("shard.00000.mds is missing"),
        UnreachableError("s3://b does not answer"),
        CacheError(errno.ENOSPC, "cannot keep s3://b/x as /c/x: No space left on device"),
    ],
)
def test_ours_are_one_line_of_the_same_kind(error: Exception):
    found = met(error)
    assert type(found) is type(error)
    assert str(found) == str(error)
