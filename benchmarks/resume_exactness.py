# SPDX-License-Identifier: Apache-2.0
"""Runs that are killed and taken up again from an object store, against undisturbed ones, bit by
bit.

    python benchmarks/resume_exactness.py [--engines ddp fsdp2 zero2] [--trials 10] [--steps 40]

For each engine the demo job (AHPA attached, float32, two ranks) is trained once straight through.
Then, in each trial, it is started, killed with SIGKILL at a random moment after its first batch,
and started again with autoresume; the last trial sends SIGTERM to the launcher instead, and expects
exit code 79 and a whole checkpoint of the last batch. Weights, averages and optimizer state at the
end must be those of the undisturbed run to the bit. Checkpoints lie on a real S3 server on
loopback. Ranks are processes forked from one that has imported everything, because importing takes
longer than training here; the run that is sent SIGTERM starts as a user would start it. Ends with
exit code 1 when one trial fails.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from s3_server import BUCKET, free_ports, s3_server

from ahpa_scale.checkpoint.find import list_checkpoints
from ahpa_scale.checkpoint.local_copy import open_checkpoint
from ahpa_scale.checkpoint.reader import Reader

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
ENGINES = ("ddp", "fsdp2", "zero2")
INTERVAL = 6
GRACE = 30.0


def run_rank(rank: int, ranks: int, port: int, log: str, words: list[str]) -> None:
    """One rank of the job, in a process that has just been forked."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(ROOT)
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_PORT")
    numbers = (rank, rank, ranks, ranks, 0, port)
    os.environ |= {name: str(number) for name, number in zip(names, numbers, strict=True)}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    torch.set_num_threads(1)
    from ahpa_scale.run.main import main as train

    train(words)
    sys.stdout.flush()
    os._exit(0)  # gloo's destructors can hang when the interpreter exits


class Ranks:
    """The ranks of one run."""

    def __init__(self, ranks: int, log: Path, words: list[str]) -> None:
        context = multiprocessing.get_context("forkserver")
        (port,) = free_ports(1)
        self.processes = [
            context.Process(target=run_rank, args=(rank, ranks, port, str(log), words))
            for rank in range(ranks)
        ]
        for process in self.processes:
            process.start()

    def poll(self) -> int | None:
        """The first rank's exit code that is known; None while all run."""
        return next((p.exitcode for p in self.processes if p.exitcode is not None), None)

    def kill(self) -> None:
        """Sends SIGKILL to all of them."""
        for process in self.processes:
            process.kill()

    def wait(self) -> int:
        """Waits until all have ended; returns 0 if all ended well."""
        for process in self.processes:
            process.join()
        return next((p.exitcode for p in self.processes if p.exitcode), 0)


@dataclass(frozen=True)
class Job:
    """The demo job of one engine.

    Attributes:
        engine: parallel engine.
        data: prepared data set.
        folder: local folder of all its runs.
        ranks: processes.
        steps: batches.
    """

    engine: str
    data: Path
    folder: Path
    ranks: int
    steps: int

    def url(self, name: str) -> str:
        """Where a run's checkpoints go."""
        return f"s3://{BUCKET}/{self.engine}/{name}"

    def rows(self, name: str) -> list[dict[str, float]]:
        """What a run has logged so far."""
        path = self.folder / name / "metrics.jsonl"
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    def words(self, name: str) -> list[str]:
        """The YAML and the settings of a run."""
        settings = {
            "data.local": self.data,
            "data.num_workers": 0,
            "output_dir": self.folder / name,
            "checkpoint.save_folder": self.url(name),
            "checkpoint.save_interval": f"{INTERVAL}ba",
            "checkpoint.autoresume": "true",
            "max_duration": f"{self.steps}ba",
            "global_train_batch_size": 32,
            "model.depth": 3,
            "optimizer.warmup": "4ba",
            "logging.interval": "1ba",
            "sampling.interval": "null",
            "precision": "fp32",
            "parallelism.engine": self.engine,
        }
        return ["yamls/demo-ahpa.yaml", *(f"{key}={value}" for key, value in settings.items())]

    def log(self, name: str) -> Path:
        """The run's log file."""
        return self.folder / f"{name}.log"

    def start(self, name: str) -> Ranks:
        """Starts a run, or resumes it."""
        return Ranks(self.ranks, self.log(name), self.words(name))

    def launch(self, name: str) -> subprocess.Popen[bytes]:
        """Starts or resumes a run through the launcher."""
        with self.log(name).open("ab") as log:
            command = [str(BIN / "ahpa-scale"), "launch", "--nproc", str(self.ranks), "train.py"]
            return subprocess.Popen(
                [*command, *self.words(name)],
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )

    def finish(self, name: str) -> None:
        """Trains a run to its end."""
        if self.start(name).wait() != 0:
            raise RuntimeError(self.log(name).read_text()[-3000:])

    def wait_for_batch(self, name: str, process: Ranks | subprocess.Popen[bytes]) -> None:
        """Waits until the first batch is logged."""
        while not self.rows(name):
            if process.poll() is not None:
                raise RuntimeError(self.log(name).read_text()[-3000:])
            time.sleep(0.02)

    def difference(self, name: str, other: str) -> str | None:
        """The first tensor that differs at the end of two runs; None if there is none."""
        cache = self.folder / "cache"
        a, b = (open_checkpoint(f"{self.url(n)}/ba{self.steps}", cache / n) for n in (name, other))
        with Reader(a.folder) as first, Reader(b.folder) as second:
            for prefix in ("model/", "optim/", "algorithms/"):
                if not first.names(prefix) or first.names(prefix) != second.names(prefix):
                    return f"the names of {prefix}"
                for each in first.names(prefix):
                    if not torch.equal(first.whole(prefix + each), second.whole(prefix + each)):
                        return prefix + each
        a.remove()
        b.remove()
        return None


def kill_trial(job: Job, number: int, seconds: float, rng: random.Random) -> str | None:
    """One SIGKILL at a random moment within `seconds` after the first batch; the difference."""
    name = f"killed{number}"
    process = job.start(name)
    job.wait_for_batch(name, process)
    moment = rng.uniform(0.0, 0.9 * seconds)
    time.sleep(moment)
    process.kill()
    process.wait()
    batch = int(job.rows(name)[-1]["batch"])
    whole = [
        checkpoint.batch
        for checkpoint in list_checkpoints(job.url(name))
        if checkpoint.problem is None
    ]
    job.finish(name)
    told = f"killed {moment:.1f} s after the first batch, at batch {batch}"
    difference = job.difference("straight", name)
    say(job, f"{told}, taken up at {max(whole, default=0)}: {difference or 'the same'}")
    return difference


def leave_trial(job: Job, seconds: float, rng: random.Random) -> str | None:
    """One SIGTERM to the launcher; returns the problem, or None."""
    name = "asked"
    process = job.launch(name)
    job.wait_for_batch(name, process)
    time.sleep(rng.uniform(0.0, 0.5 * seconds))
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code = process.wait()
    took = time.monotonic() - begun
    newest = list_checkpoints(job.url(name))[-1]
    batch = int(job.rows(name)[-1]["batch"])
    if code != 79 or newest.problem is not None or newest.batch != batch or took > GRACE:
        return f"exit code {code}, batch {batch}, {newest.name} {newest.problem}, {took:.0f} s"
    job.finish(name)
    difference = job.difference("straight", name)
    told = f"SIGTERM at batch {batch}: saved, exit code {code} after {took:.1f} s"
    say(job, f"{told}; taken up: {difference or 'the same'}")
    return difference


def measure(job: Job, trials: int, rng: random.Random) -> list[str]:
    """Runs all trials of one engine; returns the problems."""
    begun = time.monotonic()
    job.finish("straight")
    rows = job.rows("straight")
    seconds = rows[-1]["seconds"] - rows[0]["seconds"]
    say(job, f"straight: {time.monotonic() - begun:.0f} s, of them {seconds:.1f} s of training")
    problems = [kill_trial(job, number, seconds, rng) for number in range(trials)]
    problems.append(leave_trial(job, seconds, rng))
    wrong = [problem for problem in problems if problem is not None]
    say(job, f"{len(problems) - len(wrong)} of {len(problems)} bit-identical")
    return wrong


def say(job: Job, text: str) -> None:
    """Prints a line of progress; the lines are also the result."""
    print(f"{job.engine}, {job.ranks} ranks: {text}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line per trial."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--engines", nargs="+", default=list(ENGINES))
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    rng = random.Random(given.seed)
    wrong: list[str] = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "store").mkdir()
        size = ["--size", "32", "--num-samples", "256", "--no-progress"]
        words = [str(BIN / "ahpa-scale"), "prepare", "demo", *size, "--out", str(folder / "data")]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        with s3_server(folder / "store") as server:
            # Set before the fork server starts, because it keeps its environment.
            os.environ.update(server.environment)
            os.environ |= {"DS_ACCELERATOR": "cpu", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
            os.environ["OMP_NUM_THREADS"] = "1"
            multiprocessing.set_forkserver_preload(["ahpa_scale.run.build", "deepspeed"])
            for engine in given.engines:
                (folder / engine).mkdir()
                job = Job(engine, folder / "data", folder / engine, given.ranks, given.steps)
                wrong += measure(job, given.trials, rng)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
