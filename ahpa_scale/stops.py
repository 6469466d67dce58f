# SPDX-License-Identifier: Apache-2.0
"""How a run that guards itself ends before its time, and the exit codes that say so.

Standard library only: launchers read it without torch.
"""

from __future__ import annotations

#: The run stopped itself; the same command would meet the same trouble again.
STOPPED = 70
#: The run was asked to leave, and left with a checkpoint: the same command, with
#: checkpoint.autoresume=true, goes on from there.
PREEMPTED = 79
#: It was asked to leave and could not save in time: it goes on from an older checkpoint.
CUT_SHORT = 80
#: The last checkpoint could not be written.
NOT_SAVED = 74
#: The run asks for the same command again, with checkpoint.autoresume=true, to go on from its last
#: checkpoint.
ROLL_BACK = 76


class RunStoppedError(RuntimeError):
    """A run that stopped itself.

    Attributes:
        exit_code: what the process ends with.
    """

    exit_code = STOPPED


class RollBackError(RunStoppedError):
    """A run that is to go on from its last checkpoint."""

    exit_code = ROLL_BACK
