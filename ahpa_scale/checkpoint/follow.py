# SPDX-License-Identifier: Apache-2.0
"""Follows a run's checkpoints as they appear. Each is proved whole before it is used.

For programs that watch a run. The run itself resumes with `local_copy`, on all ranks.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ahpa_scale import storage
from ahpa_scale.checkpoint import content
from ahpa_scale.checkpoint.find import StoredCheckpoint, checkpoints_at
from ahpa_scale.checkpoint.manifest import Manifest
from ahpa_scale.progress import progress_bar

#: Smallest size in bytes for which a progress bar is shown.
_LONG = 32_000_000


@dataclass(frozen=True)
class Pace:
    """How to wait for new checkpoints.

    Attributes:
        every: seconds between two looks.
        idle: stop after this many seconds without a new checkpoint; None: never stop.
        ended: whether the newest checkpoint is the last that the run will save.
    """

    every: float
    idle: float | None
    ended: Callable[[StoredCheckpoint], bool]


class Follower:
    """Looks for checkpoints and fetches the wanted ones.

    Args:
        url: folder or URL of checkpoints, or of one checkpoint.
        wanted: whether a checkpoint is still to be taken; asked again at every look.
        newest: take only the newest whole checkpoint at each look. Otherwise all, oldest first.
        pace: how to wait; None takes the checkpoints that are there and stops.
        progress: show rate and time left of long copies.
        tell: prints a line for people.
    """

    def __init__(
        self,
        url: str,
        wanted: Callable[[StoredCheckpoint], bool],
        *,
        newest: bool = False,
        pace: Pace | None = None,
        progress: bool = True,
        tell: Callable[[str], None],
    ) -> None:
        self._url, self._wanted, self._tell = url, wanted, tell
        self._newest, self._pace, self._progress = newest, pace, progress
        # A damaged checkpoint is not fetched again at every look, unless it is saved anew.
        self._damaged: dict[str, Manifest | None] = {}
        self._taken = self._overtaken = False

    def __iter__(self) -> Iterator[StoredCheckpoint]:
        """Checkpoints to fetch. Call `brought` on each before you ask for the next.

        Raises:
            OSError: the store can't be reached at the first look. Later this is only a warning.
        """
        checkpoints = checkpoints_at(self._url)
        news = time.monotonic()
        while True:
            busy = self._overtaken = False
            for checkpoint in self._due(checkpoints):
                self._taken = False
                yield checkpoint
                busy = busy or self._taken
                if self._newest and self._taken:
                    break
            if self._pace is None or (
                self._all_came(checkpoints, self._pace) and not self._overtaken
            ):
                return
            if busy:  # new checkpoints may have come meanwhile
                news = time.monotonic()
            elif self._pace.idle is not None and time.monotonic() - news >= self._pace.idle:
                self._tell(f"nothing new at {self._url} for {self._pace.idle:g} s")
                return
            else:
                time.sleep(self._pace.every)
            checkpoints = self._look(checkpoints, self._pace)

    @contextmanager
    def brought(self, checkpoint: StoredCheckpoint) -> Iterator[Path | None]:
        """A local folder with the verified checkpoint, or None if it can't be used.

        A damaged checkpoint causes a warning that names the file. One that was removed or saved
        anew meanwhile causes none.

        Raises:
            OSError: the store can't be reached, or the disk is full.
        """
        with tempfile.TemporaryDirectory(prefix="ahpa-scale-") as room:
            remote = storage.is_remote(checkpoint.url)
            with self._moving(checkpoint) as moved:
                look = (
                    content.copy(checkpoint, Path(room), moved)
                    if remote
                    else content.damage(checkpoint, moved)
                )
            if not look:
                self._taken = True
                yield Path(room) if remote else storage.local_path(checkpoint.url)
                return
            if checkpoint.manifest is not None and content.overtaken(checkpoint):
                self._overtaken = True
            else:
                self._damaged[checkpoint.url] = checkpoint.manifest
                self._tell(f"warning: stepping over {checkpoint.url}: {'; '.join(look)}")
            yield None

    def _due(self, checkpoints: Sequence[StoredCheckpoint]) -> Iterator[StoredCheckpoint]:
        for checkpoint in reversed(checkpoints) if self._newest else checkpoints:
            # No manifest: its upload still runs or was cut short.
            if checkpoint.begun:
                continue
            # Damaged at an earlier look, and not saved anew since.
            if self._damaged.get(checkpoint.url, checkpoint) == checkpoint.manifest:
                continue
            if self._wanted(checkpoint):
                yield checkpoint
            elif self._newest:
                return

    def _all_came(self, checkpoints: Sequence[StoredCheckpoint], pace: Pace) -> bool:
        newest = next(
            (checkpoint for checkpoint in reversed(checkpoints) if not checkpoint.begun), None
        )
        return newest is not None and pace.ended(newest)

    def _look(self, before: list[StoredCheckpoint], pace: Pace) -> list[StoredCheckpoint]:
        """The checkpoints that are there now. If the store can't be reached, those of `before`."""
        try:
            with storage.asking_once():
                return checkpoints_at(self._url)
        except OSError as error:
            self._tell(f"warning: looking again in {pace.every:g} s: {error}")
            return before

    @contextmanager
    def _moving(self, checkpoint: StoredCheckpoint) -> Iterator[content.Moved]:
        size = 0 if checkpoint.manifest is None else checkpoint.manifest.total_bytes
        shown = self._progress and size >= _LONG
        with progress_bar(
            total=size // 1_000_000, unit="MB", desc=checkpoint.name, shown=shown
        ) as bar:

            def moved(done: int) -> None:
                bar.update(done // 1_000_000 - bar.n)

            yield moved
