# SPDX-License-Identifier: Apache-2.0
"""Outages of a store: a run reaches its end, or ends with 75 and resumes bit for bit."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tools.drill.jobs import PATIENCE, Job, job, losses
from tools.drill.places import Places
from tools.drill.results import Result

from fault_proxy import FaultProxy, Faults  # isort: skip  # of the tests, see places.py

UNREACHABLE = 75
SECONDS = 30.0
#: Batches of each run.
BATCHES = 60
#: Bytes per second of the slow store, for all uploads together: half a minute per checkpoint.
SLOW = 2_000_000


@dataclass
class Store:
    """The server, and the proxy in front of it; each method makes one outage."""

    server: int
    proxy: FaultProxy

    def stop(self) -> None:
        """Gives no answer for a while."""
        os.kill(self.server, signal.SIGSTOP)
        time.sleep(SECONDS)
        os.kill(self.server, signal.SIGCONT)

    def refuse(self) -> None:
        """Closes every connection for a while."""
        self._for_a_while(Faults(share=1.0, kinds=("cut",)))

    def fail(self) -> None:
        """Answers 503 for a while."""
        self._for_a_while(Faults(share=1.0, kinds=("503",)))

    def err(self) -> None:
        """Makes 5 % of the answers errors of all kinds from now on."""
        self.proxy.set(Faults(share=0.05))

    def crawl(self) -> None:
        """Slows uploads from now on, and stops and continues the server for a while."""
        self.proxy.set(Faults(put_rate=SLOW))
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            os.kill(self.server, signal.SIGSTOP)
            time.sleep(1.0)
            os.kill(self.server, signal.SIGCONT)
            time.sleep(0.5)

    def _for_a_while(self, faults: Faults) -> None:
        self.proxy.set(faults)
        time.sleep(SECONDS)
        self.proxy.set()


#: What happens to the store, by name.
OUTAGES: dict[str, Callable[[Store], None]] = {
    "stopped": Store.stop,
    "refusing": Store.refuse,
    "failing": Store.fail,
    "errors": Store.err,
    "slow": Store.crawl,
}
#: What the store with the outage holds.
ROLES = ("data", "checkpoints")


def cases() -> list[tuple[str, str]]:
    """Roles and outages."""
    return [(role, outage) for role in ROLES for outage in OUTAGES]


def endure(role: str, outage: str, seed: int, folder: Path, places: Places) -> Result:
    """Runs one job whose store has one outage; a job that ends with 75 is started again."""
    reference = places.reference
    problems: list[str] = []
    with ExitStack() as stack:
        proxy = stack.enter_context(FaultProxy(places.server.endpoint, seed))
        variables = {**places.environment, "S3_ENDPOINT_URL": proxy.url}
        words = [f"max_duration={BATCHES}ba", *_chosen(role, folder, places)]
        store = Store(places.server.process.pid, proxy)
        running = stack.enter_context(job(folder, *words, environment=variables))
        if not running.trained(3) and running.process.poll() is None:
            problems.append("it did not come to train")
        begun = time.time()
        OUTAGES[outage](store)
        code = running.ends(2 * PATIENCE)
        took, line = time.time() - begun, running.complaint()
        left = running.left_over()
        proxy.set()
        if left:
            problems.append(f"{len(left)} processes were left: {left[0]}")
        if code == UNREACHABLE:
            again: Job = stack.enter_context(job(folder, *words, environment=variables))
            second = again.ends(2 * PATIENCE)
            if second != 0:
                problems.append(f"taken up again, it ended with {second}: {again.complaint()}")
        elif code != 0:
            problems.append(f"ended with {code}, not 0 or {UNREACHABLE}")
    logged = losses(folder)
    if not problems and sorted(logged) != list(range(1, BATCHES + 1)):
        problems.append(f"{len(logged)} of {BATCHES} batches are in metrics.jsonl")
    other = [batch for batch, loss in logged.items() if loss != reference[batch]]
    if other:
        problems.append(f"batch {min(other)} has another loss than in the undisturbed run")
    return Result(code, took, line, problems)


def _chosen(role: str, folder: Path, places: Places) -> list[str]:
    if role == "checkpoints":
        url = f"s3://{places.bucket}/{folder.name}"
        return [f"data.local={places.data}", f"checkpoint.save_folder={url}"]
    places.upload_data(folder.name)
    url = f"s3://{places.bucket}/{folder.name}"
    return [f"data.remote={url}", f"data.local={folder / 'cache'}"]
