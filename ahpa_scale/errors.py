# SPDX-License-Identifier: Apache-2.0
"""What a user can mend, told apart from a fault of ours or of a library. Imports nothing."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake that whoever gave the input can mend: one line that names it, and exit code 2.

    Only our own checks raise it. Any other exception, a ValueError of torch's or Composer's too, is
    a fault of the software and shows its traceback.
    """


class HostError(UserError):
    """A mistake that other hosts need not share, so that its own rank says it."""
