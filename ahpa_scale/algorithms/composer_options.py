# SPDX-License-Identifier: Apache-2.0
"""Options of Composer's Trainer that algorithms can't serve: one line says what to use instead."""

from __future__ import annotations

from composer.callbacks import CheckpointSaver
from composer.core import State

from ahpa_scale.errors import UserError

_OURS = (
    "leave save_folder and load_path out and give the Trainer callbacks "
    "ahpa_scale.checkpoint.saver.Saver and ahpa_scale.checkpoint.resume.Resume"
)


def checkpoint_error(what: str) -> UserError:
    """The error for Composer's own checkpoints, which can't hold `what`."""
    return UserError(f"Composer's checkpoints can't hold {what}: {_OURS}")


def refuse_save_folder(state: State, what: str) -> None:
    """Refuses a Trainer with a ``save_folder`` before it trains.

    Raises:
        UserError: it has one.
    """
    if any(isinstance(callback, CheckpointSaver) for callback in state.callbacks):
        raise checkpoint_error(what)
