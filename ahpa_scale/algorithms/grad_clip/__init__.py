# SPDX-License-Identifier: Apache-2.0
"""Gradient clipping that keeps alignment heads out of the backbone's norm: see README.md."""

from __future__ import annotations

from .grad_clip import GradClip, clip_groups, gradient_norms, log_norms, parameter_groups

__all__ = ["GradClip", "clip_groups", "gradient_norms", "log_norms", "parameter_groups"]
