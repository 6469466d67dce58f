# SPDX-License-Identifier: Apache-2.0
"""Errors of checkpoints. Standard library only, because they are used before torch is imported."""

from __future__ import annotations

from ahpa_scale.errors import UserError


class CheckpointError(UserError):
    """A checkpoint can't or mustn't be loaded, or could not be written."""


class StoreAwayError(CheckpointError):
    """A checkpoint could not be written because a store does not answer."""
