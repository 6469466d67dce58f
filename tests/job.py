# SPDX-License-Identifier: Apache-2.0
"""Runs the project's commands as a user would: in a process of their own, from the repository."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stand_in import settled

from ahpa_scale.launch.command import LAUNCHERS_OWN

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest and mypy bring it

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
CLI = BIN / "ahpa-scale"
#: The YAMLs' own where the processor multiplies in bfloat16; float32 where it imitates that and
#: takes ten times as long.
FASTEST = "amp_bf16" if "bf16" in Path("/proc/cpuinfo").read_text() else "fp32"


def project() -> dict[str, Any]:
    """The table `project` of pyproject.toml."""
    parsed: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return parsed


def outside() -> dict[str, str]:
    """The environment without the place in a job that Composer notes in this process's own: rank 0
    of 1, once a test has trained in it.
    """
    return {name: value for name, value in os.environ.items() if name not in LAUNCHERS_OWN}


def run(
    *command: object, environment: Mapping[str, str] | None = None, cold: bool = False
) -> subprocess.CompletedProcess[str]:
    """Runs a command with one thread to its end, at most 20 minutes, and keeps what it says.

    Args:
        command: a program of the project, or the interpreter and its arguments.
        environment: variables besides the test's own.
        cold: start it, and what it starts, as a user does. Else they are forks of a process that
            has imported torch and Composer: use it where a test is not about starting.
    """
    return subprocess.run(
        [str(word) for word in command] if cold else warmed(*command),
        cwd=ROOT,
        env={**variables(), **(environment or {})},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )


def warmed(*command: object) -> list[str]:
    """A command whose program is a fork of a warmed process, in the namespaces of who starts it.

    Start it with `variables`. Of its processes only the first, and those that it starts as
    programs, have its environment in /proc; SIGSTOP stops the first alone.
    """
    words = [os.fsdecode(word) if isinstance(word, bytes) else str(word) for word in command]
    if words[0] == sys.executable:
        return [str(warm_python()), *words[1:]]
    if words[0] in (str(CLI), str(BIN / "composer")):
        return [str(warm_python()), *words]
    return words


@functools.cache
def warm_python() -> Path:
    """An interpreter whose programs are forks of one process, which ends with this one."""
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    socket, python = folder / "socket", folder / "python"
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "zygote.py"), str(socket)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=variables(),
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    names = {"REAL": sys.executable, "SOCKET": str(socket), "ENVIRONMENT": settled(variables())}
    head = [f"#!{sys.executable} -IS", *(f"{name} = {value!r}" for name, value in names.items())]
    python.write_text("\n".join(head) + "\n" + (ROOT / "tests" / "stand_in.py").read_text())
    python.chmod(0o755)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return python


def variables() -> dict[str, str]:
    """Of a program of the project: one thread."""
    return {**outside(), "OMP_NUM_THREADS": "1"}
