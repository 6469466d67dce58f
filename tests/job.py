# SPDX-License-Identifier: Apache-2.0
"""Runs the project's commands as a user would: in a process of their own, from the repository."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from ahpa_scale.launch.command import LAUNCHERS_OWN

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
CLI = BIN / "ahpa-scale"
#: The YAMLs' own where the processor multiplies in bfloat16; float32 where it imitates that and
#: takes ten times as long.
FASTEST = "amp_bf16" if "bf16" in Path("/proc/cpuinfo").read_text() else "fp32"


def outside() -> dict[str, str]:
    """The environment without the place in a job that Composer notes in this process's own: rank 0
    of 1, once a test has trained in it.
    """
    return {name: value for name, value in os.environ.items() if name not in LAUNCHERS_OWN}


def run(
    *command: object, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a command with one thread to its end, at most 20 minutes, and keeps what it says."""
    return subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env={**outside(), "OMP_NUM_THREADS": "1", **(environment or {})},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
