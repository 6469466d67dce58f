# SPDX-License-Identifier: Apache-2.0
"""Users' mistakes, as opposed to faults of our code or of a library. Imports nothing."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in the input, which the user can fix: one line that names it, and exit code 2.

    Only our own checks raise it. Any other exception is a fault of the software and shows its
    traceback; this includes a ValueError of torch or Composer.
    """


class HostError(UserError):
    """A mistake that other hosts may not share, so the rank that finds it reports it."""
