# SPDX-License-Identifier: Apache-2.0
"""The checkpoint section -> what a run starts from, and what saves it."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from composer.utils import dist

from ahpa_scale.checkpoint.errors import CheckpointError
from ahpa_scale.checkpoint.local_copy import LocalCopy, open_checkpoint, open_newest
from ahpa_scale.checkpoint.resume import Resume
from ahpa_scale.checkpoint.retention import Retention
from ahpa_scale.checkpoint.saver import Description, Saver
from ahpa_scale.config.errors import ConfigError
from ahpa_scale.config.schema import Config, parse_time
from ahpa_scale.config.written import as_written
from ahpa_scale.requests import Requests
from ahpa_scale.unreachable import UnreachableError

#: Where a node keeps the copy of a checkpoint while it reads it.
_CACHE = ".resume-node{node}"


@dataclass(frozen=True)
class Start:
    """What a run starts from.

    Attributes:
        source: a verified checkpoint, or None from scratch.
        same_run: it is this run's own, so the trackers go on with it too.
    """

    source: LocalCopy | None = None
    same_run: bool = False

    @property
    def batch(self) -> int | None:
        """Batches trained by this run already; None for a new one."""
        return self.source.manifest.batch if self.source and self.same_run else None

    @property
    def saved_at(self) -> float | None:
        """When this run's checkpoint was saved, in seconds since 1970; None for a new run."""
        if self.batch is None or self.source is None:
            return None
        return datetime.fromisoformat(self.source.manifest.created).timestamp()

    def tracker_id(self, name: str) -> str:
        """The id under which a tracker knows this run: the old one, or a new one."""
        known = self.source.manifest.loggers if self.source and self.same_run else {}
        return known.get(name) or secrets.token_hex(4)

    def callbacks(self) -> list[Resume]:
        """What takes it up."""
        return [Resume(self.source, same_run=self.same_run)] if self.source else []


def find_start(config: Config) -> Start:
    """Finds and verifies what the run starts from; autoresume wins over load_path. Every rank must
    call it.

    Raises:
        ConfigError: a checkpoint that is named is not there or damaged, a run's checkpoints can't
            be used, or the store or the disk refuses.
        UnreachableError: the store does not answer.
    """
    chosen = config.checkpoint
    cache = Path(config.output_dir) / _CACHE.format(node=dist.get_node_rank())
    key = "checkpoint.save_folder"
    try:
        if chosen.autoresume:
            assert chosen.save_folder is not None
            newest = open_newest(chosen.save_folder, cache)
            if newest is not None:
                return Start(newest, same_run=True)
        if chosen.load_path is not None:
            key = "checkpoint.load_path"
            return Start(open_checkpoint(chosen.load_path, cache), same_run=False)
    except UnreachableError:
        raise
    except (CheckpointError, OSError) as error:
        raise ConfigError(config.source_of(key), key, str(error)) from None
    return Start()


def build_saver(
    config: Config,
    start: Start,
    loggers: dict[str, str],
    alive: Callable[[], None] | None,
    requests: Requests | None,
) -> list[Saver]:
    """Builds what saves the run, if it is to be saved."""
    chosen = config.checkpoint
    if chosen.save_folder is None:
        return []
    every = None if chosen.keep_every is None else int(parse_time(chosen.keep_every)[0])
    return [
        Saver(
            chosen.save_folder,
            chosen.save_interval,
            retention=Retention(chosen.keep, every),
            description=Description(
                run_name=config.run_name,
                engine=config.parallelism.engine,
                config=as_written(config),
                loggers=loggers,
            ),
            alive=alive,
            requests=requests,
            saved_at=start.saved_at,
        )
    ]
