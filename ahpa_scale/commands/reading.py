# SPDX-License-Identifier: Apache-2.0
"""How commands read checkpoints: newest first, every byte verified, with a bar for long work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from ahpa_scale import console
from ahpa_scale.checkpoint import table
from ahpa_scale.checkpoint.find import StoredCheckpoint
from ahpa_scale.progress import progress_bar

#: From this many bytes on, a progress bar is shown.
_LONG = 32_000_000


def newest_of(checkpoints: Sequence[StoredCheckpoint]) -> list[StoredCheckpoint]:
    """The newest checkpoint that is whole by names and sizes; empty if there is none."""
    return [checkpoint for checkpoint in checkpoints if checkpoint.problem is None][-1:]


def stepping_over(checkpoint: StoredCheckpoint, problems: list[str]) -> list[str]:
    """Warns of a damaged checkpoint; an older one then takes its place."""
    if problems:
        console.say(f"warning: stepping over {checkpoint.url}: {'; '.join(problems)}")
    return problems


@contextmanager
def moving(
    work: str, checkpoints: Sequence[StoredCheckpoint], shown: bool
) -> Iterator[tuple[Callable[[int], None], Callable[[str], None]]]:
    """A bar for long work: a function that takes the bytes done, and one that prints a line."""
    mega = 1_000_000
    total = table.bytes_to_read(checkpoints)
    long = total >= _LONG
    with progress_bar(total=total // mega, unit="MB", desc=work, shown=shown and long) as bar:

        def moved(done: int) -> None:
            bar.update(done // mega - bar.n)

        yield moved, bar.write
