# SPDX-License-Identifier: Apache-2.0
"""DeepSpeed ZeRO 1 to 3 as a Composer plug-in: see README.md beside this file."""

from __future__ import annotations

from .front import ZeroFront
from .settings import ZeroSettings
from .zero import ZeRO

__all__ = ["ZeRO", "ZeroFront", "ZeroSettings"]
