# SPDX-License-Identifier: Apache-2.0
"""The process by which Python tracks shared memory, kept alive when a job is signalled."""

from __future__ import annotations

import signal
import sys
from multiprocessing import resource_tracker

from ahpa_scale.signals import HANDED_ON, SIGNALS

#: Messages of its own that begin with its name.
_SILENT = "ignore:resource_tracker:UserWarning"


def shield_tracker() -> None:
    """Starts multiprocessing's resource tracker, deaf to what asks a run to leave and silent about
    what it removes; to be called before the first shared memory is made.

    The tracker itself ignores SIGINT and SIGTERM only. A SIGUSR1 or SIGHUP to every process of a
    job would kill it. Its successor would know of no memory, and print a traceback for each piece
    that the run then gives back. And a rank that another one ends leaves its memory to the tracker,
    which would warn of it at the end of each such job.
    """
    # The tracker is started with this process's own options for warnings.
    sys.warnoptions.append(_SILENT)
    # A process inherits what is blocked, and the tracker unblocks no more than it ignores.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*SIGNALS, *HANDED_ON, signal.SIGHUP))
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        sys.warnoptions.remove(_SILENT)
