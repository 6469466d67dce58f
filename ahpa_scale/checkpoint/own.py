# SPDX-License-Identifier: Apache-2.0
"""Whose checkpoints lie in a folder. A run resumes only from its own."""

from __future__ import annotations

from collections.abc import Sequence

from ahpa_scale.checkpoint.errors import CheckpointError
from ahpa_scale.checkpoint.find import StoredCheckpoint


def own_id(
    folder: str, there: Sequence[StoredCheckpoint], run_name: str, known: str | None
) -> str | None:
    """The id of a run, from the checkpoints in its folder. Checkpoints of older versions have
    no id and are matched by the run's name alone.

    Args:
        folder: folder of the checkpoints, for messages.
        there: all checkpoints in it.
        run_name: name of the run that wants to go on.
        known: the run's id if known from elsewhere, or None.

    Returns:
        The id; None if none is known and no checkpoint has one.

    Raises:
        CheckpointError: a checkpoint belongs to another run.
    """
    own = known
    for checkpoint in there:
        if checkpoint.manifest is None:
            continue
        name, run_id = checkpoint.manifest.run_name, checkpoint.manifest.run_id
        if name != run_name:
            raise CheckpointError(
                f"{checkpoint.name} in {folder} is of the run {name!r}; set run_name={name} to go "
                f"on with that one, or give {run_name!r} a save_folder of its own"
            )
        if run_id and own and run_id != own:
            raise CheckpointError(
                f"{checkpoint.name} in {folder} is of another run that is called {run_name!r} too "
                f"(id {run_id}, and not {own}); give this one a save_folder of its own"
            )
        own = run_id or own
    return own
