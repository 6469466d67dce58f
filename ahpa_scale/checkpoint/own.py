# SPDX-License-Identifier: Apache-2.0
"""Whose checkpoints lie in a folder: a run takes up its own and no others."""

from __future__ import annotations

from collections.abc import Sequence

from ahpa_scale.checkpoint.errors import CheckpointError
from ahpa_scale.checkpoint.find import Found


def own_id(folder: str, there: Sequence[Found], run_name: str, known: str | None) -> str | None:
    """The id of a run, by the checkpoints in its folder. Those of older versions have none, and
    count by the run's name.

    Args:
        folder: where they lie.
        there: all of them.
        run_name: of the run that wants to go on.
        known: its id, as far as it knows it from elsewhere.

    Returns:
        None for a run that has saved nothing yet, or by an older version only.

    Raises:
        CheckpointError: one of them is another run's.
    """
    found = known
    for one in there:
        if one.manifest is None:
            continue
        name, run_id = one.manifest.run_name, one.manifest.run_id
        if name != run_name:
            raise CheckpointError(
                f"{one.name} in {folder} is of the run {name!r}; set run_name={name} to go on with "
                f"that one, or give {run_name!r} a save_folder of its own"
            )
        if run_id and found and run_id != found:
            raise CheckpointError(
                f"{one.name} in {folder} is of another run that is called {run_name!r} too (id "
                f"{run_id}, and not {found}); give this one a save_folder of its own"
            )
        found = run_id or found
    return found
