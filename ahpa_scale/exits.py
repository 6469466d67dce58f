# SPDX-License-Identifier: Apache-2.0
"""Every exit code of a run and of the commands. Above 128 is what a signal ended, as shells count.

Standard library only: launchers read it without torch.
"""

from __future__ import annotations

#: Any other error, after its traceback; also what a command set out to prove and could not.
FAILED = 1
#: The user's to mend. One line says what; a Kubernetes Job of ours does not try again.
MISTAKE = 2
#: The run stopped itself; the same command would meet the same trouble again.
STOPPED = 70
#: The last checkpoint could not be written.
NOT_SAVED = 74
#: A store, a hub or another rank did not answer: the same command may fare better. EX_TEMPFAIL of
#: sysexits.h.
TRY_AGAIN = 75
#: The run asks for the same command again, with checkpoint.autoresume=true, to go on from its last
#: checkpoint.
ROLL_BACK = 76
#: It was asked to leave, and a run left with a checkpoint: the same command goes on, a run with
#: checkpoint.autoresume=true.
PREEMPTED = 79
#: The run was asked to leave and could not save in time: it goes on from an older checkpoint.
CUT_SHORT = 80


class RunStoppedError(RuntimeError):
    """A run that stopped itself.

    Attributes:
        exit_code: what the process ends with.
    """

    exit_code = STOPPED


class RollBackError(RunStoppedError):
    """A run that is to go on from its last checkpoint."""

    exit_code = ROLL_BACK
