# SPDX-License-Identifier: Apache-2.0
"""All exit codes of runs and commands. A code above 128 means an end by a signal, as in shells.

Standard library only: launchers read it without torch.
"""

from __future__ import annotations

#: Any other error, after its traceback. Also a failed check, such as `checkpoints verify`.
FAILED = 1
#: The user must fix something. One line says what; our Kubernetes Jobs do not try again.
MISTAKE = 2
#: The run stopped itself; the same command would meet the same trouble again.
STOPPED = 70
#: The last checkpoint could not be written.
NOT_SAVED = 74
#: A store, a hub or another rank did not answer: the same command may succeed later. EX_TEMPFAIL
#: of sysexits.h.
TRY_AGAIN = 75
#: Start the same command again, with checkpoint.autoresume=true: the run then goes on from its
#: last checkpoint.
ROLL_BACK = 76
#: The process was asked to leave, and a run has saved its training. The same command goes on; a
#: run needs checkpoint.autoresume=true for it.
PREEMPTED = 79
#: The run was asked to leave and could not save in time: it goes on from an older checkpoint.
CUT_SHORT = 80

#: What each code says of a run, in a few words.
MEANINGS = {
    0: "ended in order",
    FAILED: "failed",
    MISTAKE: "a mistake in the input",
    STOPPED: "stopped by its guard",
    NOT_SAVED: "its last checkpoint could not be written",
    TRY_AGAIN: "a rank or a store did not answer",
    ROLL_BACK: "rolled back by its guard",
    PREEMPTED: "asked to leave, and saved",
    CUT_SHORT: "asked to leave, and could not save in time",
}


class RunStoppedError(RuntimeError):
    """A run that stopped itself.

    Attributes:
        exit_code: what the process ends with.
    """

    exit_code = STOPPED


class RollBackError(RunStoppedError):
    """A run that stopped in order to go on from its last checkpoint."""

    exit_code = ROLL_BACK
