# SPDX-License-Identifier: Apache-2.0
"""The process by which Python tracks shared memory, kept alive when a job is signalled."""

from __future__ import annotations

import signal
import sys
from multiprocessing import resource_tracker

from ahpa_scale.signals import HANDED_ON, SIGNALS

#: Filter for the warnings that begin with the tracker's name.
_SILENT = "ignore:resource_tracker:UserWarning"


def shield_tracker() -> None:
    """Starts multiprocessing's resource tracker so that it ignores the signals that ask a run to
    leave, and removes memory without a warning. Call this before the first shared memory is made.

    By itself the tracker ignores only SIGINT and SIGTERM. A SIGUSR1 or SIGHUP to every process of a
    job would kill it. Its successor would know of no memory, and print a traceback for each piece
    that the run then gives back. If one rank ends another, the memory of the ended rank is left to
    the tracker, which would print a warning at the end of each such job.
    """
    # The tracker is started with this process's own options for warnings.
    sys.warnoptions.append(_SILENT)
    # A process inherits blocked signals, and the tracker unblocks only those that it ignores.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*SIGNALS, *HANDED_ON, signal.SIGHUP))
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        sys.warnoptions.remove(_SILENT)
