# SPDX-License-Identifier: Apache-2.0
"""What a guard writes: lines of `guard.jsonl` for people, and the rollbacks so far, beside the
checkpoints, where the next process finds them.
"""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Annotated, Any

from composer.callbacks import CheckpointSaver
from composer.core import State
from composer.utils import dist
from pydantic import Field

from ahpa_scale import storage, typed_json
from ahpa_scale.errors import UserError
from ahpa_scale.log_files import append_line
from ahpa_scale.run_files import GUARD_FILE

ROLLBACKS_FILE = "rollbacks.json"
#: Most bytes of the rollbacks' file.
_LIMIT = 1 << 20
_Batches = list[Annotated[int, Field(strict=True, ge=0)]]
_log = logging.getLogger(__name__)


class Journal:
    """Appends to ``guard.jsonl`` and to Python's log, on rank 0.

    Args:
        output_dir: local folder of the run, or None for the log alone.
    """

    def __init__(self, output_dir: str | os.PathLike[str] | None) -> None:
        self.path = None if output_dir is None else Path(output_dir) / GUARD_FILE

    def note(self, text: str, record: dict[str, Any]) -> None:
        """Writes one line to each; on return it is on disk, if the disk takes it."""
        if dist.get_global_rank() != 0:
            return
        told: dict[str, object] = {
            name: record[name] for name in ("event", "batch", "action") if name in record
        }
        _log.warning("guard: %s", text, extra=told)
        if self.path is None:
            return
        line = json.dumps({"time": round(time.time(), 3), **record}, allow_nan=False)
        append_line(self.path, f"{line}\n".encode())


def may_roll_back(state: State, save_folder: str, most: int) -> bool:
    """Whether the run may roll back once more; if so, notes it. All ranks get the same answer.

    Rollbacks count per checkpoint: training restarts at most `most` times from the same checkpoint,
    so a batch that is bad each time ends the run.

    Args:
        state: at the end of the bad batch.
        save_folder: folder or URL of the checkpoints.
        most: rollbacks to one checkpoint.

    Raises:
        UserError: on rank 0, the count of rollbacks can't be read.
    """
    allowed = [False]
    saved = last_saved_batch(state)
    if dist.get_global_rank() == 0:
        path = storage.join(save_folder, ROLLBACKS_FILE)
        batches = _rolled_back(path)
        allowed = [sum(batch > saved for batch in batches) < most]
        if allowed[0]:
            batches.append(state.timestamp.batch.value)
            storage.write_text(path, json.dumps(batches))
    # Nobody leaves before the note is written: launchers end all ranks when the first one is gone.
    dist.broadcast_object_list(allowed)
    return allowed[0]


def _rolled_back(path: str) -> _Batches:
    """The bad batches of former rollbacks."""
    try:
        content = storage.read_bytes(path, _LIMIT)
    except FileNotFoundError:
        return []
    try:
        return typed_json.parse_as(_Batches, content, path)
    except UserError as error:
        raise UserError(f"{error}; remove it to count rollbacks from none") from None


def last_saved_batch(state: State) -> int:
    """Batches trained at this run's newest checkpoint; 0 without one. Waits for uploads. Every rank
    must call it.
    """
    newest = 0
    for callback in state.callbacks:
        if isinstance(callback, CheckpointSaver):
            times = callback.all_saved_checkpoints_to_timestamp.values()
            newest = max([newest, *(int(time.batch.value) for time in times)])
        elif hasattr(callback, "last_saved_batch"):  # our Saver, not imported here
            callback.wait()
            newest = max(newest, callback.last_saved_batch)
    return newest
