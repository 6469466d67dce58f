# SPDX-License-Identifier: Apache-2.0
"""The watch on one host: what one rank does is what the others end with, and say."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import job
import pytest

from ahpa_scale.config.schema import Config

RANK = Path(__file__).with_name("watched_rank.py")
#: Long enough for a machine that does other things as well.
SILENCE = 12.0


def free_udp_port() -> int:
    """A port of which the number is free for TCP and UDP at this moment."""
    with closing(socket.socket(type=socket.SOCK_DGRAM)) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Ranks:
    """Some ranks on this host.

    Args:
        ends: what each does, as `watched_rank.py` takes it: batches and end.
        port: number of MASTER_PORT; None is a free one.
        ranks: their numbers; None counts from 0.
        variables: of all ranks, in place of those of two nodes with one rank each.
        join: whether they meet as a run's ranks do; else they have one key, and no torch.
        meeting: folder where they meet, and how many do; None: these meet in one of their own.
        watch_port: key `port` of the section.
        watch: its other keys.
    """

    def __init__(
        self,
        *ends: tuple[int, str],
        port: int | None = None,
        ranks: Sequence[int] | None = None,
        variables: Mapping[str, int | str] | None = None,
        join: bool = False,
        meeting: tuple[Path, int] | None = None,
        watch_port: int | None = None,
        **watch: float | bool | None,
    ) -> None:
        self.port = port or free_udp_port()
        self.processes = []
        self.meeting = meeting or (Path(tempfile.mkdtemp()), len(ends))
        section = json.dumps({"silence": SILENCE, "hang": None, "port": watch_port} | watch)
        for rank, (batches, end) in zip(ranks or range(len(ends)), ends, strict=True):
            # Two nodes of one rank each, as far as the variables say.
            told = {
                "RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 1, "NODE_RANK": rank,
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": self.port,
                **({"JOIN": 1} if join else {}), **(variables or {}),
            }  # fmt: skip
            self.processes.append(
                subprocess.Popen(
                    job.warmed(sys.executable, RANK, section, *self.meeting, batches, end),
                    env=job.variables() | {name: str(value) for name, value in told.items()},
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )

    def begun(self) -> Ranks:
        """Waits until each has begun its first batch."""
        folder, present = self.meeting
        while len(list(folder.glob("begun-*"))) < present:
            assert all(process.poll() is None for process in self.processes)
            time.sleep(0.05)
        return self

    def ends(self) -> list[tuple[int, str]]:
        """Exit code and stderr of each rank, waiting at most ten minutes for each."""
        told = [process.communicate(timeout=600)[1] for process in self.processes]
        return list(zip([process.returncode for process in self.processes], told, strict=True))


@pytest.fixture
def start() -> Iterator[type[Ranks]]:
    started: list[Ranks] = []

    class Started(Ranks):
        def __init__(self, *ends, **options) -> None:
            super().__init__(*ends, **options)
            started.append(self)

    yield Started
    for ranks in started:
        shutil.rmtree(ranks.meeting[0], ignore_errors=True)
    for process in (process for ranks in started for process in ranks.processes):
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


HOST = re.escape(socket.gethostname())


def test_ranks_that_finish_apart_end_well(start):
    """Rank 0 is through long before rank 1, for longer than a silence."""
    assert [code for code, _ in start((2, "finish"), (150, "finish")).ends()] == [0, 0]


@pytest.mark.parametrize("dead", [0, 1])
def test_a_rank_that_is_killed_is_named_by_the_other(start, dead):
    ends = [(60, "die") if rank == dead else (6000, "finish") for rank in (0, 1)]
    (code, told) = start(*ends).ends()[1 - dead]
    assert code == 75
    assert re.fullmatch(
        rf"error: rank {dead} on {HOST} \(node {dead}\) has not been heard from for \d+ s; "
        r"last seen at batch [1-5]?[0-9]: forward\n",
        told,
    )


@pytest.mark.parametrize("broken", [0, 1])
def test_what_a_rank_raised_is_told_by_the_other(start, broken):
    ends = [(8, "raise") if rank == broken else (1000, "finish") for rank in (0, 1)]
    told = start(*ends).ends()
    line = f"(node {broken}) failed: ValueError: this batch is broken\n"
    assert told[1 - broken][0] == 75
    assert told[1 - broken][1].endswith(line)
    assert told[broken][0] == 1
    assert "Traceback" in told[broken][1]


@pytest.mark.parametrize("broken", [0, 1])
def test_an_exit_code_that_a_rank_chose_is_the_jobs(start, broken):
    ends = [(8, "refuse") if rank == broken else (1000, "finish") for rank in (0, 1)]
    told = start(*ends).ends()
    assert [code for code, _ in told] == [2, 2]
    assert told[1 - broken][1].endswith("ended the job: run.yaml:3: no such VAE\n")


def test_a_broken_connection_is_not_blamed_on_the_rank_that_notices_it(start):
    """A killed rank's peers get an error of gloo's at once; the watch says whose fault it is."""
    (code, told), _ = start((9, "lose"), (8, "die")).ends()
    assert code == 75
    assert f"error: rank 1 on {socket.gethostname()} (node 1) has not been heard from" in told
    assert "Traceback" not in told


def test_a_broken_connection_between_ranks_that_live_is_reported_as_it_is(start):
    (code, told), (other_code, other) = start((1000, "finish"), (8, "lose")).ends()
    assert (code, other_code) == (75, 1)
    assert "(node 1) failed: RuntimeError: [pair.cc:534] Connection closed by peer" in told
    assert "Traceback" in other


def test_a_rank_that_is_stopped_says_so(start):
    ranks = start((1000, "finish"), (1000, "finish")).begun()
    ranks.processes[1].terminate()
    (code, told), (stopped, _) = ranks.ends()
    assert (code, stopped) == (75, 128 + 15)
    assert re.search(r"rank 1 on \S+ \(node 1\) was stopped by SIGTERM; last seen at batch", told)


def test_a_rank_that_hangs_is_named_with_its_stage_and_its_stack(start):
    (code, told), (stuck_code, stuck) = start((30, "stall"), (20, "stall"), hang=15.0).ends()
    assert (code, stuck_code) == (75, 75)
    line = (
        rf"error: no rank has made progress for \d+ s; furthest behind: rank 1 on {HOST} "
        r"\(node 1\), at batch 19: forward\n"
    )
    assert re.fullmatch(line, told)
    assert re.match(line, stuck)
    assert "watched_rank.py" in stuck


def test_without_a_limit_a_rank_may_take_its_time(start):
    ranks = start((1, "stall"), (1, "stall")).begun()
    time.sleep(SILENCE + 5)
    assert [process.poll() for process in ranks.processes] == [None, None]


def test_a_rank_that_never_speaks_is_named(start):
    """The ranks have met, so it is there: what is closed is the way for its datagrams."""
    first, other = start((1000, "finish")), start((1000, "finish"), ranks=[1])
    ((code, told),) = first.ends()
    assert code == 75
    assert "rank 1 (node 1) joined the job and can't be heard on UDP port" in told
    ((code, told),) = other.ends()
    assert code == 75
    assert "rank 0 on 127.0.0.1 (node 0) joined the job and does not answer on UDP port" in told


def test_a_rank_of_an_earlier_attempt_ends_and_does_not_disturb_the_new_one(start):
    first = start((15, "die"), (6000, "finish"), join=True, silence=30.0)
    first.processes[0].wait(timeout=600)
    second = start((30, "finish"), (30, "finish"), join=True, port=first.port)
    assert [code for code, _ in second.ends()] == [0, 0]
    code, told = first.ends()[1]
    assert code == 75
    assert "rank 0 on" in told
    assert "has not been heard from" in told


def listeners(port: int) -> dict[str, set[str]]:
    """The addresses of this host that listen on a port, as the kernel writes them."""
    found: dict[str, set[str]] = {"tcp": set(), "udp": set()}
    for name in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path("/proc/net", name).read_text().splitlines()[1:]:
            address, number = line.split()[1].split(":")
            if int(number, 16) == port and line.split()[3] in ("0A", "07"):
                found[name[:3]].add(address)
    return found


def test_a_second_job_with_the_same_port_fails_alone_and_at_once(start):
    """So does a second process in the place of one rank."""
    first = start((6000, "finish"), (6000, "finish"), join=True).begun()
    assert listeners(first.port) == {"tcp": {"0100007F"}, "udp": {"0100007F"}}
    second = start((1, "finish"), (1, "finish"), join=True, port=first.port)
    (code, told), (other_code, other) = second.ends()
    assert (code, other_code) == (2, 75)
    assert re.fullmatch(
        rf"error: MASTER_PORT: TCP port {first.port} can't be had on rank 0's host: another job "
        r"has it; give each job .*--master-port\)\n",
        told,
    )
    assert "error: MASTER_PORT: a job that has a rank 1 already meets at" in other
    assert [process.poll() for process in first.processes] == [None, None]


def test_ranks_with_different_secrets_earn_one_line(start, tmp_path):
    port = free_udp_port()
    first, second = (
        start((1000, "finish"), ranks=[rank], join=True, port=port, meeting=(tmp_path, 9),
              variables={"AHPA_JOB_SECRET": "secret" * (rank + 1)})
        for rank in (0, 1)
    )  # fmt: skip
    ((code, told),) = second.ends()
    assert code == 2
    assert told == (
        "error: AHPA_JOB_SECRET is not the one that rank 0 has: give all ranks the same\n"
    )
    first.processes[0].kill()


def test_a_port_that_is_taken_is_a_users_mistake(start):
    with closing(socket.socket(type=socket.SOCK_DGRAM)) as other:
        other.bind(("", 0))
        port = other.getsockname()[1]
        ((code, told),) = start((1, "finish"), ranks=[0], port=port).ends()
    assert code == 2
    assert f"watch.port: UDP port {port} can't be had on rank 0's host" in told


@pytest.mark.parametrize("broken", [0, 1])
def test_a_watch_that_fails_ends_its_process_and_says_why(start, broken):
    ends = [(8, "break") if rank == broken else (1000, "finish") for rank in (0, 1)]
    told = start(*ends).ends()
    assert (told[broken][0], told[1 - broken][0]) == (1, 75)
    assert "Traceback" in told[broken][1]
    assert told[broken][1].endswith(f"error: the watch of rank {broken} has failed\n")


def test_no_exit_code_of_one_rank_makes_the_others_look_successful(start):
    """Of 256 the system keeps the last byte."""
    assert start((3, "succeed"), (20, "finish")).ends() == [(0, ""), (0, "")]


def test_the_port_may_be_another_than_the_jobs(start, tmp_path):
    """Two jobs on one host, each of which names its own."""
    port = free_udp_port()
    first, second = (
        start((50, "finish"), ranks=[rank], meeting=(tmp_path, 2), watch_port=port)
        for rank in (0, 1)
    )
    assert first.port != second.port
    assert [code for code, _ in first.ends() + second.ends()] == [0, 0]


def test_a_longer_silence_is_waited_for(start):
    begun = time.monotonic()
    (code, told), _ = start((1000, "finish"), (8, "die"), silence=2 * SILENCE).ends()
    assert code == 75
    found = re.search(r"heard from for (\d+) s", told)
    assert found is not None
    assert int(found[1]) >= 2 * SILENCE
    assert time.monotonic() - begun > 2 * SILENCE


@pytest.mark.parametrize(
    ("variables", "watch"), [({"WORLD_SIZE": 1}, {}), ({}, {"enabled": False})]
)
def test_one_rank_alone_or_a_watch_that_is_off_starts_nothing(start, variables, watch):
    ((code, told),) = start((1, "finish"), ranks=[0], variables=variables, **watch).ends()
    assert (code, told) == (0, "unwatched\n")


def test_the_defaults_end_a_job_within_a_minute():
    watch = Config(run_name="a", max_duration="1ba").watch
    assert watch.enabled
    assert watch.silence + 2 + 5 < 60


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["watch.silence=1"], ["watch.silence: 1", "at least 2"]),
        (["watch.port=70000"], ["watch.port: 70000", "at most 65535"]),
        (["watch.hang=0"], ["watch.hang: 0", "at least 2"]),
        (["watch.enabled=false", "watch.port=4000"], ["watch.port", "watch.enabled is false"]),
        (["watch.silense=9"], ["watch.silense: unknown key", "silence"]),
    ],
)
def test_a_wrong_watch_earns_one_line(complaint, overrides, words):
    line = complaint(*overrides)
    assert all(word in line for word in words), line
