# SPDX-License-Identifier: Apache-2.0
"""Kinds of errors, each with its allowed exit codes and the words that its line must contain."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tools.drill.jobs import LIMIT, PATIENCE, ROOT, Job, job
from tools.drill.places import Places
from tools.drill.results import Result

#: Exit codes, see ahpa_scale.exits.
MISTAKE, STOPPED, NOT_SAVED, GONE = 2, 70, 74, 75
SOFTWARE = frozenset({1, GONE})
MISSING = frozenset({MISTAKE, GONE})
Act = Callable[[Job, Path], None]


@dataclass(frozen=True)
class Kind:
    """An error that a job meets.

    Attributes:
        name: the kind's name; for a plug-in's fault, its name there.
        codes: exit codes that the launcher may end with.
        words: one of them must be in the first line that says what is wrong; empty: no check.
        act: does the harm once the job trains; None: the plug-in or the start does it.
        plugin: whether the plug-in does the harm.
        chosen: ``key=value`` settings, with ``{place}`` for the case's own folder.
        disk: options of a file system that is mounted there; None: no mount.
        workers: whether the case needs loader workers.
    """

    name: str
    codes: frozenset[int]
    words: tuple[str, ...]
    act: Act | None = None
    plugin: bool = False
    chosen: tuple[str, ...] = ()
    disk: str | None = None
    workers: bool = False

    @property
    def goes_on(self) -> bool:
        """Whether the run must reach its end despite the error; a failed save is reported there."""
        return self.codes <= {0, NOT_SAVED}


def plugin(name: str, *words: str, codes: frozenset[int] = SOFTWARE) -> Kind:
    """A fault of `tools.drill.plugin`."""
    return Kind(name, codes, words, plugin=True)


def start(name: str, words: tuple[str, ...], *chosen: str, codes: frozenset[int]) -> Kind:
    """A job that must fail before it trains."""
    return Kind(name, codes, words, chosen=chosen)


def _kill_rank(running: Job, place: Path) -> None:
    os.kill(running.rank(1), signal.SIGKILL)


def _stop_rank(running: Job, place: Path) -> None:
    os.kill(running.rank(1), signal.SIGSTOP)


def _kill_worker(running: Job, place: Path) -> None:
    os.kill(running.workers(1)[0], signal.SIGKILL)


def _kill_launcher(running: Job, place: Path) -> None:
    running.process.kill()


def _lose_shards(running: Job, place: Path) -> None:
    for shard in place.glob("data/*.mds*"):
        shard.unlink()


def _cut_shards(running: Job, place: Path) -> None:
    for shard in place.glob("data/*.mds*"):
        os.truncate(shard, shard.stat().st_size // 3)


def _fill(running: Job, place: Path) -> None:
    # A checkpoint may have filled it before.
    with suppress(OSError), (place / "filler").open("wb") as file:
        while True:
            file.write(bytes(1 << 16))
            file.flush()


def _make_read_only(running: Job, place: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)


_HERE = ("data.local={place}/data",)
_STORE = ("checkpoint.save_folder=s3://{bucket}/drill",)
KINDS: tuple[Kind, ...] = (
    plugin("callback", "RuntimeError: drill: a callback fell over"),
    plugin("value-error", "ValueError: drill: a library's own"),
    plugin("key-error", "KeyError: 'drill: no such key'"),
    plugin("wrong-shape", "mat1 and mat2 shapes"),
    plugin("no-memory", "Unable to allocate"),
    plugin("recursion", "RecursionError", "maximum recursion depth"),
    plugin("loader", "a sample could not be read"),
    plugin("watch", "the watch fell over"),
    plugin("writer", "the writer of checkpoints fell over", codes=SOFTWARE | {NOT_SAVED}),
    plugin("exit", "rank 1", codes=frozenset({41, GONE})),
    plugin("segfault", "rank 1", "Segmentation fault", codes=frozenset({139, GONE})),
    plugin("nan", "not finite", "finite", codes=frozenset({STOPPED})),
    Kind("rank-killed", frozenset({137, GONE}), ("rank 1",), _kill_rank),
    Kind("rank-stopped", frozenset({GONE}), ("rank 1",), _stop_rank),
    Kind("launcher-killed", frozenset({-9}), (), _kill_launcher),
    Kind("worker-killed", SOFTWARE, ("worker",), _kill_worker, workers=True),
    Kind("shards-lost", MISSING, ("shard",), _lose_shards, chosen=_HERE),
    Kind("shards-cut", MISSING, ("shard",), _cut_shards, chosen=_HERE),
    Kind(
        "save-folder-full",
        frozenset({NOT_SAVED}),
        ("No space left",),
        _fill,
        chosen=("checkpoint.save_folder={place}/saved",),
        disk="size=8m",
    ),
    Kind(
        "output-full",
        frozenset({0}),
        (),
        _fill,
        chosen=("output_dir={place}/out",),
        disk="size=1m",
    ),
    Kind(
        "output-turns-read-only",
        frozenset({0}),
        (),
        _make_read_only,
        chosen=("output_dir={place}/out",),
        disk="size=8m",
    ),
    Kind(
        "output-read-only",
        frozenset({MISTAKE}),
        ("output_dir", "Read-only"),
        chosen=("output_dir={place}/out",),
        disk="ro",
    ),
    start("unknown-key", ("modle",), "modle.name=tiny/2", codes=frozenset({MISTAKE})),
    start("no-data", ("dataset.json", "no data set", "data.local"), "data.local={place}/none",
          codes=frozenset({MISTAKE})),
    start("no-set-in-store", ("no-set",), "data.remote=s3://{bucket}/no-set",
          "data.local={place}/cache", codes=MISSING),
    start("refused-credentials", ("refus", "403", "SignatureDoesNotMatch", "credential"), *_STORE,
          codes=frozenset({MISTAKE})),
    # The job only reads, because the drill's server makes a missing bucket on a write.
    start("no-bucket", ("bucket",), "data.remote=s3://no-such-bucket/x",
          "data.local={place}/cache", codes=frozenset({MISTAKE})),
)  # fmt: skip


def meet(kind: Kind, workers: int, folder: Path, places: Places) -> Result:
    """Runs one job that meets an error."""
    where = folder / "place"
    where.mkdir(parents=True)
    with _disk(where, kind.disk):
        if kind.chosen == _HERE:
            places.copy_data(where / "data")
        words = [word.format(place=where, bucket=places.bucket) for word in kind.chosen]
        if not any(word.startswith("data.local=") for word in words):
            words.append(f"data.local={places.data}")
        batches = 60 if kind.goes_on else 100_000
        words += [f"data.num_workers={workers}", f"max_duration={batches}ba"]
        words += ["guard.nonfinite=stop"] * (kind.name == "nan")
        moment = folder / "moment"
        variables = {
            **places.environment,
            "DRILL_FAULT": kind.name,
            "DRILL_RANK": "1",
            "DRILL_MOMENT": str(moment),
        }
        if kind.name == "refused-credentials":
            variables["AWS_SECRET_ACCESS_KEY"] = "not-the-secret"
        script = Path(__file__).with_name("plugin.py") if kind.plugin else ROOT / "train.py"
        with job(folder, *words, script=script, environment=variables) as running:
            return _judge(kind, running, where, moment)


def _judge(kind: Kind, running: Job, where: Path, moment: Path) -> Result:
    begun = time.time()
    problems: list[str] = []
    if kind.act is not None:
        if running.trained(3):
            begun = time.time()
            kind.act(running, where)
        else:
            problems.append("it did not come to train")
    elif kind.plugin and running.until(moment.exists):
        begun = moment.stat().st_mtime
    code = running.ends(PATIENCE if kind.goes_on else max(1.0, begun + 2 * LIMIT - time.time()))
    left = running.left_over(30.0 if kind.name == "launcher-killed" else 10.0)
    took = running.gone_at - begun
    line = running.complaint()
    if code not in kind.codes:
        problems.append(f"ended with {code}, not {sorted(kind.codes)}")
    if took > LIMIT and not kind.goes_on:
        problems.append(f"took {took:.0f} s")
    if kind.words and not any(word.lower() in line.lower() for word in kind.words):
        problems.append(f"the first line has none of {list(kind.words)}")
    if left:
        problems.append(f"{len(left)} processes were left: {left[0]}")
    # For a job that fails before it trains, the moment of the error is unknown.
    timed = not kind.goes_on and (kind.act is not None or kind.plugin)
    told = running.told_at - begun if timed and running.told_at is not None else None
    return Result(code=code, seconds=took, line=line, problems=problems, told=told)


@contextmanager
def _disk(where: Path, options: str | None) -> Iterator[None]:
    """Mounts a tmpfs at a folder, for kinds that fill it or make it read-only."""
    if options is None:
        yield
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "drill", str(where)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(where)], check=True)
