# SPDX-License-Identifier: Apache-2.0
"""What goes wrong with checkpoints. Standard library only: looked at before torch is imported."""

from __future__ import annotations

from ahpa_scale.errors import UserError


class CheckpointError(UserError):
    """A checkpoint that can't or mustn't be loaded, or that could not be written."""


class StoreAwayError(CheckpointError):
    """A checkpoint that could not be written because a store does not answer."""
