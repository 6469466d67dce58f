# SPDX-License-Identifier: Apache-2.0
"""Runs the project's commands as a user would: in a process of their own, from the repository."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
CLI = BIN / "ahpa-scale"


def run(
    *command: object, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a command with one thread to its end, at most ten minutes, and keeps what it says."""
    return subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
