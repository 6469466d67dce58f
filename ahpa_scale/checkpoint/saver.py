# SPDX-License-Identifier: Apache-2.0
"""Saves a run while it goes on: a copy between two batches, everything else on a thread."""

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
    """What a manifest says of the run, beside its clocks.

    Attributes:
        run_name: as configured.
        engine: parallel engine.
        config: the resolved configuration, as JSON.
        loggers: ids under which trackers know the run.
        run_id: the run's own.
        data_set: what tells its data set from others.
    """

    run_name: str = ""
    engine: str = "ddp"
    config: Mapping[str, Any] | None = None
    loggers: Mapping[str, str] | None = None
    run_id: str = ""
    data_set: Mapping[str, Any] | None = None


class Saver(Callback):
    """Writes checkpoints that appear whole or not at all; see README.md beside this file.

    Training stands still for one copy of this rank's state. A save that fails is told and the run
    goes on; the last one of a run must succeed.

    Args:
        folder: local path or URL.
        interval: Composer time string between checkpoints; there is one at the end as well.
        retention: which older ones stay.
        description: what the manifests say of the run.
        alive: called every second while the main thread waits for an upload.
        requests: a checkpoint is saved when all ranks have agreed that one was asked for.
        saved_at: when the checkpoint was saved that the run goes on from, in seconds since 1970.
        saved: called on rank 0, on the thread, after each checkpoint that has come to its place.

    Raises:
        CheckpointError: at the end of training, the last checkpoint could not be written.
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
    ) -> None:
        self.folder = folder
        self.retention = retention or Retention()
        self.description = description or Description()
        self._due = create_interval_scheduler(interval)
        self._alive = alive or (lambda: None)
        self._saved = saved or (lambda: None)
        self._photographer = Photographer()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writer: Writer | None = None
        self._pending: tuple[int, Future[None]] | None = None
        self._taken: int | None = None
        self._failure: CheckpointError | None = None
        self._requests = requests or Requests()
        #: Batches trained at the newest checkpoint that is in its place; 0 without one.
        self.last_saved_batch = 0
        #: When it came there, in seconds since 1970; None without one.
        self.last_saved_at = saved_at

    def init(self, state: State, logger: Logger) -> None:
        """Every rank joins the group that only uploads talk over."""
        del state, logger
        self._writer = Writer(self.folder, self.retention, PatientGroup())

    def fit_start(self, state: State, logger: Logger) -> None:
        """A run that goes on from a checkpoint has that one."""
        del logger
        self._taken = self.last_saved_batch = state.timestamp.batch.value

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Saves, if it is time or asked for."""
        del logger
        self._look(state, Event.BATCH_CHECKPOINT)

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        """Saves, if it is time."""
        del logger
        self._look(state, Event.EPOCH_CHECKPOINT)

    def fit_end(self, state: State, logger: Logger) -> None:
        """Waits for the last upload."""
        del state, logger
        self.wait()
        if self._failure is not None:
            raise self._failure

    def close(self, state: State, logger: Logger) -> None:
        """Waits for an upload that is under way; a run that ends by an error is closed too."""
        del state, logger
        self.wait()
        self._thread.shutdown(wait=False)

    def wait(self) -> None:
        """Until no upload is under way, with a line every ten seconds.

        Raises:
            Exception: what the thread fell over; that a checkpoint could not be saved is noted.
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
            # A fault of the thread, which the other ranks' threads wait for, is raised here.
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
