# SPDX-License-Identifier: Apache-2.0
"""The checkpoint section -> the start of a run, and its saver."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path

from composer.utils import dist

from ahpa_scale.checkpoint.best import Contest
from ahpa_scale.checkpoint.errors import CheckpointError
from ahpa_scale.checkpoint.find import StoredCheckpoint
from ahpa_scale.checkpoint.local_copy import LocalCopy, open_checkpoint, open_newest
from ahpa_scale.checkpoint.own import own_id
from ahpa_scale.checkpoint.resume import Resume
from ahpa_scale.checkpoint.retention import Retention
from ahpa_scale.checkpoint.saver import Description, Saver
from ahpa_scale.config.errors import ConfigError
from ahpa_scale.config.schema import Config, parse_time
from ahpa_scale.config.written import as_written
from ahpa_scale.data.card import DatasetCard
from ahpa_scale.data.identity import identity
from ahpa_scale.preemption import Requests
from ahpa_scale.run.taken_up import check_other_run, check_same_data, note_id, noted_id, warn
from ahpa_scale.unreachable import UnreachableError

#: Folder where a node keeps its copy of a checkpoint while reading it.
_CACHE = ".resume-node{node}"


@dataclass(frozen=True)
class Start:
    """What a run starts from.

    Attributes:
        source: a verified checkpoint; None to start from scratch.
        same_run: this run saved it, so the trackers continue too.
        new_pass: the data are read from the beginning of a pass.
        run_id: id of the run; valid on rank 0.
    """

    source: LocalCopy | None = None
    same_run: bool = False
    new_pass: bool = False
    run_id: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def batch(self) -> int | None:
        """Batches that this run has trained already; None for a new run."""
        return self.source.manifest.batch if self.source and self.same_run else None

    @property
    def saved_at(self) -> float | None:
        """When this run's checkpoint was saved, in seconds since 1970; None for a new run."""
        if self.batch is None or self.source is None:
            return None
        return datetime.fromisoformat(self.source.manifest.created).timestamp()

    def tracker_id(self, name: str) -> str:
        """The id under which a tracker knows this run: the saved one, or a new one."""
        known = self.source.manifest.loggers if self.source and self.same_run else {}
        return known.get(name) or secrets.token_hex(4)

    def callbacks(self) -> list[Resume]:
        """The callback that loads the checkpoint, if there is one."""
        if self.source is None:
            return []
        return [Resume(self.source, same_run=self.same_run, new_pass=self.new_pass)]


def find_start(config: Config, card: DatasetCard) -> Start:
    """Finds and verifies the checkpoint to start from. autoresume wins over load_path. Every rank
    must call it.

    Raises:
        ConfigError: the named checkpoint is missing or damaged; the run's checkpoints can't be
            used, belong to another run or were trained on other data; or the store or disk refuses.
        UnreachableError: the store does not answer.
    """
    chosen = config.checkpoint
    cache = Path(config.output_dir) / _CACHE.format(node=dist.get_node_rank())
    key = "checkpoint.save_folder"
    try:
        if chosen.autoresume:
            assert chosen.save_folder is not None
            own = _Own(config, card)
            newest = open_newest(chosen.save_folder, cache, own.check)
            if newest is not None:
                other = check_same_data(config, card, newest.url, newest.manifest)
                if other is not None:
                    warn(f"going on with other data from the beginning of a pass: {other}")
                new_pass = other is not None
                return Start(newest, same_run=True, new_pass=new_pass, run_id=own.run_id)
        if chosen.load_path is not None:
            key = "checkpoint.load_path"
            source = open_checkpoint(chosen.load_path, cache)
            check_other_run(config, card, source.url, source.manifest)
            return Start(source, same_run=False, new_pass=True)
    except UnreachableError:
        raise
    except (CheckpointError, OSError) as error:
        raise ConfigError(config.source_of(key), key, str(error)) from None
    return Start()


class _Own:
    """Checks the checkpoints in a run's folder, on rank 0."""

    def __init__(self, config: Config, card: DatasetCard) -> None:
        self._config, self._card = config, card
        self.run_id = secrets.token_hex(8)

    def check(self, there: Sequence[StoredCheckpoint]) -> None:
        """Refuses checkpoints of another run or other data before anything is copied."""
        config = self._config
        known = noted_id(config.output_dir)
        folder = str(config.checkpoint.save_folder)
        self.run_id = own_id(folder, there, config.run_name, known) or self.run_id
        whole = [checkpoint for checkpoint in there if checkpoint.problem is None]
        if whole and whole[-1].manifest is not None:
            check_same_data(config, self._card, whole[-1].url, whole[-1].manifest)


def build_saver(
    config: Config,
    start: Start,
    loggers: dict[str, str],
    alive: Callable[[], None] | None,
    requests: Requests | None,
    card: DatasetCard | None = None,
    contest: Contest | None = None,
) -> list[Saver]:
    """Builds the saver if the run has a save_folder."""
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
                run_id=start.run_id,
                data_set=None if card is None else identity(card),
            ),
            alive=alive,
            requests=requests,
            saved_at=start.saved_at,
            saved=partial(note_id, config.output_dir, start.run_id),
            contest=contest,
        )
    ]
