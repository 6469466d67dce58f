# SPDX-License-Identifier: Apache-2.0
"""Starts the drill's jobs, finds their processes, and reads what they said."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
RUN = Path(__file__).with_name("run.yaml")
#: Variable in the environment of all processes of a job, so that the drill finds every one.
MARK = "DRILL_JOB"
#: Seconds within which everything has ended after an error.
LIMIT = 60.0
#: Seconds to wait for a condition: the machine may be busy.
PATIENCE = 400.0
_EXCEPTION = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt|Timeout)\b.*")


@dataclass
class Job:
    """A job of two ranks under one launcher.

    Attributes:
        folder: for its log and, by default, its output and checkpoints.
        output: its output_dir.
        process: the launcher.
        mark: the job's value of `MARK`.
        begun: when it was started, in seconds since 1970, like all moments here.
        told_at: when its first complaint came; None: there is none yet.
        gone_at: when its last process had ended.
    """

    folder: Path
    output: Path
    process: subprocess.Popen[bytes]
    mark: str
    begun: float = field(default_factory=time.time)
    told_at: float | None = None
    gone_at: float = math.nan

    @property
    def log(self) -> str:
        path = self.folder / "log"  # removed when the case is over
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl."""
        return rows_of(self.output)

    @property
    def pids(self) -> list[int]:
        """All living processes of the job."""
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._has(pid)]

    def rank(self, number: int) -> int:
        """The process of a rank.

        Raises:
            LookupError: there is no such rank.
        """
        ranks = [pid for pid in self.pids if _variable(pid, "RANK") == str(number)]
        for pid in sorted(ranks):
            if _parent(pid) not in ranks:
                return pid
        raise LookupError(f"no rank {number}")

    def hears(self, number: int) -> bool:
        """Whether a rank handles the signals that ask it to leave.

        Raises:
            LookupError: there is no such rank.
        """
        caught = re.search(r"^SigCgt:\s*(\w+)", _read(self.rank(number), "status"), re.M)
        return caught is not None and bool(int(caught[1], 16) >> (signal.SIGUSR1 - 1) & 1)

    def workers(self, number: int) -> list[int]:
        """The loader workers of a rank."""
        rank = self.rank(number)
        mine = _command(rank)
        return [p for p in self.pids if _parent(p) == rank and _command(p) == mine]

    def until(self, seen: Callable[[], bool], seconds: float = PATIENCE) -> bool:
        """Waits until `seen` is true or the job has ended; returns whether it is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with suppress(LookupError, OSError):
                if seen():
                    return True
            if self.process.poll() is not None:
                return False
            time.sleep(0.05)
        return False

    def trained(self, batch: int) -> bool:
        """Waits for a row of this batch."""
        return self.until(lambda: bool(self.rows) and self.rows[-1]["batch"] >= batch)

    def ends(self, seconds: float) -> int | None:
        """The launcher's exit code; None if it runs longer than this."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def left_over(self, seconds: float = 10.0) -> list[str]:
        """Kills the processes that outlive the launcher; returns their commands."""
        end = time.monotonic() + seconds
        while (pids := self.pids) and time.monotonic() < end:
            time.sleep(0.05)
        self.gone_at = time.time()
        commands = [_command(pid)[-120:] for pid in pids]
        self.kill()
        return commands

    def listen(self) -> None:
        """Notes when the first complaint comes; runs on its own thread."""
        read = 0
        while self.told_at is None and math.isnan(self.gone_at):
            size = len(self.log)
            if size > read and self.complaint():
                self.told_at = time.time()
            read = size
            time.sleep(0.05)

    def kill(self) -> None:
        """Kills all processes of the job."""
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        if math.isnan(self.gone_at):
            self.gone_at = time.time()

    def complaint(self) -> str:
        """The first line that says what is wrong: an error line, or the exception of a traceback.
        If no rank could print one, it is the launcher's line.
        """
        within, crashed = False, ""
        for line in self.log.splitlines():
            line = re.sub(r"^\[?rank\d+\]?: ?", "", line)
            if line.startswith("ERROR:composer"):
                crashed = crashed or line
            elif re.match(r"(error|fatal): ", line, re.I) or "Segmentation fault" in line:
                return line
            within = within or line.startswith("Traceback")
            if within and _EXCEPTION.match(line):
                return line
        return crashed

    def _has(self, pid: int) -> bool:
        return _variable(pid, MARK) == self.mark and _state(pid) != "Z"


@contextmanager
def job(
    folder: Path,
    *words: str,
    script: Path = ROOT / "train.py",
    environment: Mapping[str, str] | None = None,
    launcher: tuple[str, ...] = ("ahpa-scale", "launch", "--nproc", "2"),
) -> Iterator[Job]:
    """Starts a job; whatever is left of it is killed at the block's end.

    Args:
        folder: for its log, output and checkpoints; it may exist.
        words: ``key=value`` settings.
        script: the script to launch.
        environment: variables added to those of this process.
        launcher: a program beside this Python, and its flags.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mark = f"{folder.name}-{time.time_ns()}"
    given = dict(word.split("=", 1) for word in words)
    own = {"output_dir": folder / "run", "checkpoint.save_folder": folder / "checkpoints"}
    rest = [f"{key}={value}" for key, value in own.items() if key not in given]
    command = [str(BIN / launcher[0]), *launcher[1:], str(script), str(RUN), *rest, *words]
    variables = {"OMP_NUM_THREADS": "1", MARK: mark, "PYTHONPATH": str(ROOT), **(environment or {})}
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **variables},
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    started = Job(folder, Path(given.get("output_dir", own["output_dir"])), process, mark)
    Thread(target=started.listen, daemon=True).start()
    try:
        yield started
    finally:
        started.kill()


def rows_of(output: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl, without a torn line."""
    path = output / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = []
    for line in lines:
        with suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def losses(folder: Path) -> dict[int, float]:
    """The total loss of each batch, as last written in a job's own folder."""
    return {row["batch"]: row["loss/train/total"] for row in rows_of(folder / "run")}


def saved(folder: Path) -> list[int]:
    """Batches of a local folder's whole checkpoints."""
    return sorted(
        int(p.parent.name[2:]) for p in (folder / "checkpoints").glob("ba*/manifest.json")
    )


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _variable(pid: int, name: str) -> str | None:
    for item in _read(pid, "environ").split("\0"):
        if item.startswith(f"{name}="):
            return item[len(name) + 1 :]
    return None


def _command(pid: int) -> str:
    return _read(pid, "cmdline").replace("\0", " ").strip()


def _stat(pid: int) -> list[str]:
    return _read(pid, "stat").rpartition(")")[2].split() or ["Z", "0"]


def _state(pid: int) -> str:
    return _stat(pid)[0]


def _parent(pid: int) -> int:
    return int(_stat(pid)[1])
