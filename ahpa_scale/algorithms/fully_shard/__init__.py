# SPDX-License-Identifier: Apache-2.0
"""FSDP2 and HSDP as a Composer plug-in: see README.md beside this file."""

from __future__ import annotations

from .fully_shard import FullyShard, shard_generator

__all__ = ["FullyShard", "shard_generator"]
