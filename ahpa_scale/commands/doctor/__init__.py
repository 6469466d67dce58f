# SPDX-License-Identifier: Apache-2.0
"""``ahpa-scale doctor``: whether this machine can train, a line for each thing it looked at."""

from __future__ import annotations
