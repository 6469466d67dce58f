# SPDX-License-Identifier: Apache-2.0
"""Runs worker processes, a few at a time, each on its own cores, until all are done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_ROOT = str(Path(__file__).resolve().parents[1])
_POLL_SECONDS = 0.5
_PATIENCE_SECONDS = 20.0


@dataclass(frozen=True)
class Task:
    """One worker process.

    Attributes:
        name: for people.
        words: arguments of ``python -m experiments``.
        log: file for everything it prints.
        threads: cores that it computes on. Training takes one, because threads that share a busy
            core spin while they wait for one another.
    """

    name: str
    words: tuple[str, ...]
    log: Path
    threads: int = 1


@dataclass
class Outcome:
    """Names of a pool's tasks by how they ended."""

    done: list[str]
    failed: list[str]
    left: list[str]


def run_tasks(
    tasks: Sequence[Task],
    jobs: int,
    *,
    deadline: float | None = None,
    tick: Callable[[list[str]], None] = lambda running: None,
    ended: Callable[[Task, int], None] = lambda task, status: None,
) -> Outcome:
    """Run tasks in order, `jobs` at a time.

    Args:
        tasks: what to run.
        jobs: processes at a time.
        deadline: time.monotonic() at which running tasks are ended and no more are begun.
        tick: called about twice a second with the names of the running tasks.
        ended: called with each task that ends and its exit status.

    Returns:
        Which tasks ended well, which failed, which are left.
    """
    # On SIGTERM the runner ends its workers, too.
    before = signal.signal(signal.SIGTERM, _leave)
    waiting, running = list(tasks), dict[str, tuple[Task, subprocess.Popen[bytes]]]()
    outcome = Outcome([], [], [])
    try:
        while waiting or running:
            if deadline is not None and time.monotonic() >= deadline:
                break
            while waiting and len(running) < jobs:
                task = waiting.pop(0)
                running[task.name] = (task, _start(task))
            for name, (task, process) in list(running.items()):
                status = process.poll()
                if status is not None:
                    del running[name]
                    (outcome.failed if status else outcome.done).append(name)
                    ended(task, status)
            tick(list(running))
            time.sleep(_POLL_SECONDS)
    finally:
        _stop([process for _, process in running.values()])
        signal.signal(signal.SIGTERM, before)
    outcome.left = [*running, *(task.name for task in waiting)]
    return outcome


def _leave(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _start(task: Task) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (_ROOT, os.environ.get("PYTHONPATH")))),
        "OMP_NUM_THREADS": str(task.threads),
        "MKL_NUM_THREADS": str(task.threads),
        # Progress bars go into a log file.
        "TQDM_MININTERVAL": "20",
        # Compilers started by the workers would take the cores from their neighbours.
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }
    task.log.parent.mkdir(parents=True, exist_ok=True)
    with task.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "experiments", *task.words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
        )


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def last_line(log: Path) -> str:
    """The last line that a worker printed, to say why it failed."""
    if not log.exists():
        return "it printed nothing"
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it printed nothing"
