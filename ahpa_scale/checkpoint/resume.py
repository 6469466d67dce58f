# SPDX-License-Identifier: Apache-2.0
"""Loads a checkpoint when the Trainer is built."""

from __future__ import annotations

from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from ahpa_scale.checkpoint.local_copy import LocalCopy
from ahpa_scale.checkpoint.reader import Reader
from ahpa_scale.checkpoint.restore import restore
from ahpa_scale.checkpoint.snapshot import load_random_states


class Resume(Callback):
    """Loads a verified checkpoint after everything is attached and sharded.

    Composer's own loader is not used: it unpickles, and supports neither ZeRO nor a changed world
    size.

    Args:
        source: the checkpoint, on this node's disk.
        same_run: whether this run saved it. If not, the alignment may differ.
        new_pass: whether to read the data from the beginning of a pass, in this run's own order.
            None: yes, unless `same_run`.

    Raises:
        CheckpointError: on ``Event.AFTER_LOAD``, if it belongs to another model.
    """

    def __init__(self, source: LocalCopy, *, same_run: bool, new_pass: bool | None = None) -> None:
        self.source = source
        self.same_run, self.new_pass = same_run, new_pass
        self._random: dict[str, Any] | None = None

    def after_load(self, state: State, logger: Logger) -> None:
        """Loads the checkpoint. Composer itself has loaded nothing."""
        del logger
        with Reader(self.source.folder) as reader:
            restore(state, reader, same_run=self.same_run, new_pass=self.new_pass)
            # With another number of ranks, saved generator states don't match the ranks.
            if self.source.manifest.world_size == dist.get_world_size():
                self._random = reader.rank_state(dist.get_global_rank())
        dist.barrier()
        self.source.remove()

    def epoch_start(self, state: State, logger: Logger) -> None:
        """Resumed between epochs: sets the generators now, because the loader draws next."""
        del state, logger
        self._set_random()

    def batch_start(self, state: State, logger: Logger) -> None:
        """Resumed within an epoch: sets the generators now, after the new loader has drawn."""
        del state, logger
        self._set_random()

    def _set_random(self) -> None:
        if self._random is not None:
            load_random_states(self._random)
            self._random = None
