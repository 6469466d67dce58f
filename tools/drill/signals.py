# SPDX-License-Identifier: Apache-2.0
"""Signals at random moments: a run must lose nothing that a checkpoint could hold.

After one request to leave, the run must have saved its last batch. After a second one it may leave
at once, and at most the batches since the last interval are lost. Either way it must resume from
there, bit for bit.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tools.drill.jobs import LIMIT, PATIENCE, Job, job, losses, saved
from tools.drill.places import Places
from tools.drill.results import Result

COUNT = 30
#: Signals come within these seconds from the start of a job; it trains for most of them.
SPAN = 40.0
INTERVAL = 10
TARGETS = ("rank 0", "rank 1", "group", "launcher")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
LAUNCHERS = {
    "ours": ("ahpa-scale", "launch", "--nproc", "2"),
    "composer": ("composer", "-n", "2"),
}
PREEMPTED, CUT_SHORT = 79, 80
#: Batches to train after a resume.
MORE = 3


@dataclass(frozen=True)
class Blow:
    """One or two signals.

    Attributes:
        number: number of the case.
        target: one of `TARGETS`.
        signals: the signals to send.
        moments: seconds from the start of the job. A signal is sent later if Python itself is still
            starting, because then nothing could handle it.
        launcher: one of `LAUNCHERS`.
    """

    number: int
    target: str
    signals: tuple[signal.Signals, ...]
    moments: tuple[float, ...]
    launcher: str

    @property
    def name(self) -> str:
        what = "+".join(signum.name.removeprefix("SIG") for signum in self.signals)
        return f"{self.number:02}-{what}-{self.target.replace(' ', '')}-{self.launcher}"

    @property
    def asks(self) -> list[signal.Signals]:
        """The signals that ask to leave; a hangup of the console does not."""
        return [signum for signum in self.signals if signum != signal.SIGHUP]


def blows(seed: int) -> list[Blow]:
    """Draws the cases, the same for the same seed: targets with one signal and with two."""
    draw = random.Random(seed)
    every = list(itertools.product(TARGETS, SIGNALS, (False, True)))
    draw.shuffle(every)
    drawn = []
    for number, (target, first, twice) in enumerate(every[:COUNT]):
        moment = draw.uniform(0.0, SPAN)
        later = moment + draw.uniform(0.0, 4.0)
        second = draw.choice(SIGNALS[:3])
        launcher = draw.choice(("ours", "ours", "composer"))
        signals, moments = ((first, second), (moment, later)) if twice else ((first,), (moment,))
        drawn.append(Blow(number, target, signals, moments, launcher))
    return drawn


def strike(blow: Blow, folder: Path, places: Places) -> Result:
    """Sends the signals, and resumes the run."""
    words = [f"data.local={places.data}", "max_duration=400ba"]
    with job(folder, *words, launcher=LAUNCHERS[blow.launcher]) as running:
        if blow.launcher == "ours":
            running.until(lambda: running.log != "")
        for number, moment in zip(blow.signals, blow.moments, strict=True):
            time.sleep(max(0.0, running.begun + moment - time.time()))
            if blow.target.startswith("rank"):
                running.until(lambda: running.hears(int(blow.target[-1])))
            with suppress(ProcessLookupError, LookupError):
                _send(running, blow.target, number)
        asked = time.time()
        code = running.ends(LIMIT * 2 if blow.asks else PATIENCE)
        took = time.time() - asked
        left = running.left_over()
        line, told = running.complaint(), running.log
        rows = running.rows
    problems = [f"{len(left)} processes were left: {left[0]}"] if left else []
    # Composer's launcher shows its own traceback for Ctrl-C.
    composers = blow.launcher == "composer" and blow.target in ("group", "launcher")
    if "Traceback" in told and not composers:
        problems.append("a traceback")
    problems += _judge(blow, code, took, rows[-1]["batch"] if rows else 0, folder)
    return Result(code, took, line, problems + resumed(folder, places))


def resumed(folder: Path, places: Places, *words: str) -> list[str]:
    """Resumes a run for a few batches, and compares all losses with the undisturbed run."""
    reference = places.reference
    newest = max(saved(folder), default=0)
    until = min(newest + MORE, max(reference))
    given = [*words, f"max_duration={until}ba"]
    if not any(word.startswith("data.local=") for word in words):
        given.append(f"data.local={places.data}")
    with job(folder, *given, environment=places.environment) as running:
        code = running.ends(PATIENCE)
        if code != 0:
            return [f"the resumed run ended with {code}: {running.complaint()}"]
    logged = losses(folder)
    other = [batch for batch, loss in logged.items() if loss != reference.get(batch, loss)]
    if sorted(logged) != list(range(1, max(logged, default=0) + 1)):
        return ["batches are missing in metrics.jsonl"]
    if max(logged) < until:
        return [f"the resumed run came to batch {max(logged)} of {until}"]
    return [f"batch {min(other)} has another loss than in the undisturbed run"] if other else []


def _send(running: Job, target: str, number: signal.Signals) -> None:
    if target == "launcher":
        running.process.send_signal(number)
    elif target == "group":
        os.killpg(running.process.pid, number)
    else:
        os.kill(running.rank(int(target[-1])), number)


def _judge(blow: Blow, code: int | None, took: float, last: int, folder: Path) -> list[str]:
    """The problems: lost batches, a wrong exit code, or too long a wait."""
    newest = max(saved(folder), default=0)
    if not blow.asks:
        return [] if code == 0 else [f"a hangup ended it with {code}"]
    once = len(blow.asks) == 1
    # Composer's launcher ends with its own code, which is not checked.
    fits = {0, PREEMPTED} if once else {0, PREEMPTED, CUT_SHORT}
    problems = []
    if code is None or (blow.launcher == "ours" and code not in fits):
        problems.append(f"ended with {code}, not {sorted(fits)}")
    if took > LIMIT:
        problems.append(f"took {took:.0f} s")
    held = last if once else (last - 1) // INTERVAL * INTERVAL
    if newest < held:
        problems.append(f"batch {last} was trained and {newest} is the last that is saved")
    return problems
