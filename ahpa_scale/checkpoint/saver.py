# SPDX-License-Identifier: Apache-2.0
"""Saves a run while it trains: copies the state between two batches, the rest on a thread."""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as futures_wait
from dataclasses import dataclass
from typing import Any

import composer
import torch
from composer.core import Callback, Event, State
from composer.loggers import Logger
from composer.utils import create_interval_scheduler, dist

import ahpa_scale
from ahpa_scale.checkpoint.best import Contest
from ahpa_scale.checkpoint.errors import CheckpointError
from ahpa_scale.checkpoint.find import checkpoint_name
from ahpa_scale.checkpoint.group import PatientGroup
from ahpa_scale.checkpoint.manifest import Manifest
from ahpa_scale.checkpoint.retention import Retention
from ahpa_scale.checkpoint.snapshot import Photographer, data_position
from ahpa_scale.checkpoint.writer import Writer
from ahpa_scale.preemption import Requests

_BETWEEN_LINES = 10.0
_BETWEEN_LOOKS = 1.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Description:
    """What a manifest says about the run, besides its clocks.

    Attributes:
        run_name: as configured.
        engine: parallel engine.
        config: the resolved configuration, as JSON.
        loggers: ids under which trackers know the run.
        run_id: id of the run.
        data_set: identity of its data set.
    """

    run_name: str = ""
    engine: str = "ddp"
    config: Mapping[str, Any] | None = None
    loggers: Mapping[str, str] | None = None
    run_id: str = ""
    data_set: Mapping[str, Any] | None = None


class Saver(Callback):
    """Writes checkpoints that appear whole or not at all; see README.md beside this file.

    Training stops only while this rank's state is copied. A failed save is logged and the run goes
    on, but the last save of a run must succeed.

    Args:
        folder: local path or URL.
        interval: time between checkpoints, as a Composer time string. The end of training is saved
            too.
        retention: which older checkpoints stay.
        description: what the manifests say about the run.
        alive: called every second while the main thread waits for an upload.
        requests: requests from outside. A checkpoint is saved once all ranks agree on one.
        saved_at: when the checkpoint that the run resumes from was saved, in seconds since 1970.
        saved: called on rank 0, on the thread, after each finished checkpoint.
        contest: finds the best checkpoint.

    Raises:
        CheckpointError: at the end of training, if the last checkpoint could not be written.
    """

    def __init__(
        self,
        folder: str,
        interval: str,
        *,
        retention: Retention | None = None,
        description: Description | None = None,
        alive: Callable[[], None] | None = None,
        requests: Requests | None = None,
        saved_at: float | None = None,
        saved: Callable[[], None] | None = None,
        contest: Contest | None = None,
    ) -> None:
        self.folder = folder
        self.retention = retention or Retention()
        self.description = description or Description()
        self._due = create_interval_scheduler(interval)
        self._alive = alive or (lambda: None)
        self._saved = saved or (lambda: None)
        self._contest = contest or Contest()
        self._photographer = Photographer()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writer: Writer | None = None
        self._pending: tuple[int, Future[None]] | None = None
        self._taken: int | None = None
        self._failure: CheckpointError | None = None
        self._requests = requests or Requests()
        #: Batches trained at the newest finished checkpoint; 0 without one.
        self.last_saved_batch = 0
        #: When it was finished, in seconds since 1970; None without one.
        self.last_saved_at = saved_at

    def init(self, state: State, logger: Logger) -> None:
        """Every rank joins a group that only uploads use."""
        del state, logger
        self._writer = Writer(self.folder, self.retention, PatientGroup(), self._contest)

    def fit_start(self, state: State, logger: Logger) -> None:
        """The checkpoint that the run resumes from counts as saved."""
        del logger
        self._taken = self.last_saved_batch = state.timestamp.batch.value

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Saves if it is time, or if a save was requested."""
        del logger
        self._look(state, Event.BATCH_CHECKPOINT)

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        """Saves if it is time."""
        del logger
        self._look(state, Event.EPOCH_CHECKPOINT)

    def fit_end(self, state: State, logger: Logger) -> None:
        """Waits for the last upload."""
        del state, logger
        self.wait()
        if self._failure is not None:
            raise self._failure

    def close(self, state: State, logger: Logger) -> None:
        """Waits for a running upload. Called also if the run ends with an error."""
        del state, logger
        self.wait()
        self._thread.shutdown(wait=False)

    def wait(self) -> None:
        """Waits until no upload runs, and logs a line every ten seconds.

        Raises:
            Exception: any error of the thread except CheckpointError, which is kept for `fit_end`.
        """
        if self._pending is None:
            return
        batch, future = self._pending
        begun = said = time.monotonic()
        while True:
            done, _ = futures_wait([future], timeout=_BETWEEN_LOOKS)
            if not done:
                self._alive()
                now = time.monotonic()
                if now - said > _BETWEEN_LINES:
                    _warn(f"waiting for {checkpoint_name(batch)}, {now - begun:.0f} s so far")
                    said = now
                continue
            self._pending = None
            self._failure = None
            try:
                future.result()
            except CheckpointError as error:
                self._failure = error
            return

    def _look(self, state: State, event: Event) -> None:
        if self._pending is not None and self._pending[1].done():
            # Raises a fault of the thread now: the threads of the other ranks wait for this one.
            self.wait()
        batch = state.timestamp.batch.value
        due = self._due(state, event) or self._requests.saving
        self._requests.saving = False
        if due and batch != self._taken:
            self._save(state)

    def _save(self, state: State) -> None:
        self.wait()
        assert self._writer is not None, "set on Event.INIT"
        snapshot = self._photographer.take(state)
        manifest = _manifest(state, self.description)
        self._taken = manifest.batch
        future = self._thread.submit(self._write, self._writer, snapshot, manifest)
        self._pending = (manifest.batch, future)

    def _write(self, writer: Writer, snapshot: Any, manifest: Manifest) -> None:
        begun = time.monotonic()
        try:
            writer.write(snapshot, manifest)
        except CheckpointError as error:
            text = f"{checkpoint_name(manifest.batch)} was not saved: {error}"
            _warn(text)
            raise type(error)(text) from error
        self.last_saved_batch, self.last_saved_at = manifest.batch, time.time()
        if dist.get_global_rank() == 0:
            self._saved()
        took = time.monotonic() - begun
        told = {"batch": manifest.batch, "seconds": took}
        name = checkpoint_name(manifest.batch)
        _log.info("checkpoints: %s saved in %.1f s", name, took, extra=told)


def _manifest(state: State, description: Description) -> Manifest:
    time_ = state.timestamp
    return Manifest(
        batch=time_.batch.value,
        num_images=time_.sample.value,
        epoch=time_.epoch.value,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        run_name=description.run_name or state.run_name,
        engine=description.engine,
        world_size=dist.get_world_size(),
        versions={
            "ahpa_scale": ahpa_scale.__version__,
            "torch": torch.__version__,
            "composer": composer.__version__,
        },
        data=data_position(state),
        config=dict(description.config or {}),
        loggers=dict(description.loggers or {}),
        run_id=description.run_id,
        data_set=None if description.data_set is None else dict(description.data_set),
    )


def _warn(text: str) -> None:
    if dist.get_global_rank() == 0:
        _log.warning("checkpoints: %s", text)
