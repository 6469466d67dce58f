# SPDX-License-Identifier: Apache-2.0
"""Shards -> batches: a stable order, the right pass, resumption, and copies that are checked."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from data_sets import COUNT, LEVELS, batches, everything
from hypothesis import given, settings
from hypothesis import strategies as st
from job import variables, warmed
from s3_server import free_ports
from streaming import StreamingDataset
from streaming.base.format.mds.reader import MDSReader

from ahpa_scale.data.card import CARD_NAME
from ahpa_scale.data.columns import ColumnReader
from ahpa_scale.data.prepare import prepare
from ahpa_scale.data.stream import build_loader
from ahpa_scale.data.whole import ShardError


@given(st.sets(st.sampled_from(LEVELS)))
@settings(max_examples=16)
def test_reading_some_columns_equals_reading_all(prepared, levels):
    shard = json.loads((Path(prepared) / "index.json").read_text())["shards"][1]
    whole = MDSReader.from_json(prepared, None, shard)
    wanted = ("label", "moments", *(f"prior.{level}" for level in levels))
    some = ColumnReader(whole, wanted)
    for i in range(len(whole)):
        expected, found = whole[i], some[i]
        assert set(found) == set(wanted)
        for name in wanted:
            np.testing.assert_array_equal(found[name], expected[name])


def test_levels_that_nobody_wants_are_not_read(prepared):
    batch = batches(prepared, levels=())[0]
    assert set(batch) == {"index", "epoch", "label", "moments"}
    batch = batches(prepared, levels=(LEVELS[2],))[0]
    assert set(batch) == {"index", "epoch", "label", "moments", f"prior.{LEVELS[2]}"}
    with pytest.raises(ValueError, match=r"does not hold level 'external'; it holds encoder"):
        build_loader(prepared, batch_size=4, levels=("external",))


def test_a_shard_that_is_cut_short_is_named(prepared, tmp_path):
    shard = json.loads((Path(prepared) / "index.json").read_text())["shards"][0]
    name = shard["raw_data"]["basename"]
    (tmp_path / name).write_bytes((Path(prepared) / name).read_bytes()[:-20])
    whole = MDSReader.from_json(str(tmp_path), None, shard)
    reader = ColumnReader(whole, ("label", f"prior.{LEVELS[-1]}"))
    with pytest.raises(ShardError, match=f"{name} is cut short"):
        reader[len(whole) - 1]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_each_pass_has_its_number_and_meets_every_sample_once(prepared, num_workers):
    loader = build_loader(prepared, batch_size=4, seed=7, num_workers=num_workers)
    orders = []
    for epoch in range(3):
        found = list(loader)
        assert len(found) == len(loader) == COUNT // 4
        assert everything(found, "epoch").tolist() == [epoch] * COUNT
        orders.append(everything(found, "index").tolist())
        assert sorted(orders[-1]) == list(range(COUNT))
    assert orders[0] != orders[1] != orders[2]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_pass_is_resumed_where_it_was_left(prepared, num_workers):
    options = {"batch_size": 4, "seed": 7, "num_workers": num_workers}
    loader = build_loader(prepared, **options)
    list(loader)
    passing = iter(loader)
    for _ in range(5):
        next(passing)
    state = loader.state_dict()
    expected = [(b["index"].tolist(), b["epoch"].tolist()) for b in passing]
    resumed = build_loader(prepared, **options)
    resumed.load_state_dict(json.loads(json.dumps(state)))
    found = [(b["index"].tolist(), b["epoch"].tolist()) for b in resumed]
    assert found == expected
    assert found[0][1] == [1] * 4
    assert set(everything(list(resumed), "epoch").tolist()) == {2}


RANK_SCRIPT = """
import json, sys
import torch.distributed as dist
from ahpa_scale.data.stream import build_loader
dist.init_process_group("gloo")
loader = build_loader(sys.argv[1], batch_size=4, seed=7, num_workers=1)
seen = [(b["epoch"].tolist(), b["index"].tolist()) for _ in range(2) for b in loader]
print(json.dumps(seen), flush=True)
dist.barrier()
"""


def test_two_ranks_share_a_pass_and_count_it_alike(prepared):
    port = str(free_ports(1)[0])
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK_SCRIPT, prepared],
            env={**os.environ, **common, "MASTER_PORT": port, "RANK": r, "LOCAL_RANK": r},
            stdout=subprocess.PIPE,
            text=True,
        )
        for r in ("0", "1")
    ]
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    ranks = [json.loads(output) for output in outputs]
    steps = COUNT // 8
    for epoch in range(2):
        parts = [rank[epoch * steps : (epoch + 1) * steps] for rank in ranks]
        assert all(e == [epoch] * 4 for part in parts for e, _ in part)
        assert sorted(i for part in parts for _, ids in part for i in ids) == list(range(COUNT))
    # The global batch does not depend on the number of ranks.
    alone = batches(prepared, batch_size=8, seed=7, shuffle=True)
    for step, batch in enumerate(alone):
        together = [i for rank in ranks for i in rank[step][1]]
        assert sorted(together) == sorted(batch["index"].tolist())


def test_too_few_samples_for_a_batch_are_refused(prepared):
    with pytest.raises(ValueError, match=f"{COUNT} samples: too few for one batch of 64"):
        build_loader(prepared, batch_size=64)
    assert len(batches(prepared, batch_size=64, drop_last=False)[0]["index"]) == COUNT


def test_a_copy_in_a_cache_is_keyed_by_content(vae_path, tmp_path):
    options = {"vae_path": vae_path, "size": 16, "num_samples": 8, "progress": False}
    remote, cache = str(tmp_path / "set"), str(tmp_path / "cache")
    first = prepare("demo", remote, **options)
    old = batches(remote, local=cache)
    second = prepare("demo", remote, overwrite=True, **{**options, "seed": 1})
    new = batches(remote, local=cache)
    assert not torch.equal(old[0]["moments"], new[0]["moments"])
    assert sorted(os.listdir(cache)) == sorted([first.fingerprint, second.fingerprint])
    with pytest.raises(ValueError, match="must be local"):
        build_loader(remote, local="s3://b/cache", batch_size=4)
    with pytest.raises(ValueError, match="set `local`"):
        build_loader_of_remote_card(remote)


def build_loader_of_remote_card(remote: str) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe_file(f"/set/{CARD_NAME}", (Path(remote) / CARD_NAME).read_bytes())
    build_loader("memory://set", batch_size=4)


def test_a_damaged_shard_is_refused_on_arrival(prepared, tmp_path):
    damaged = tmp_path / "set"
    shutil.copytree(prepared, damaged)
    for shard in damaged.glob("*.mds"):
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)
    for num_workers in (0, 1):
        with pytest.raises(
            ShardError, match=f"^{damaged}/shard.0000..mds isn't what the index says"
        ):
            batches(str(damaged), local=str(tmp_path / "cache"), num_workers=num_workers)
        assert not list((tmp_path / "cache").rglob("*.mds"))


@pytest.mark.parametrize(("cache_limit", "times"), [(None, 1), ("1gb", 3)])
def test_looking_ahead_asks_once_for_a_shard_that_stays(prepared, monkeypatch, cache_limit, times):
    asked: Counter[int] = Counter()
    ask = StreamingDataset.prepare_shard

    def counted(self, shard_id: int, blocking: bool = True) -> None:
        asked[shard_id] += 1
        ask(self, shard_id, blocking)

    monkeypatch.setattr(StreamingDataset, "prepare_shard", counted)
    stream = build_loader(prepared, batch_size=4, cache_limit=cache_limit).dataset
    # What the thread does, not the thread: how far ahead it gets before the pass is over is chance.
    for shard_id in 3 * list(range(stream.num_shards)):
        stream.prepare_shard(shard_id, blocking=False)
    assert stream.num_shards > 1
    assert asked == dict.fromkeys(range(stream.num_shards), times)


def test_each_stream_takes_as_many_handles_as_the_one_before(prepared):
    def opened() -> int:
        streams.append(build_loader(prepared, batch_size=2, seed=0))
        return len(os.listdir("/proc/self/fd"))

    streams = []
    counts = [opened() for _ in range(8)]
    taken = [after - before for before, after in itertools.pairwise(counts)]
    assert set(taken[-3:]) == {taken[2]}


LEAVE = """
import sys
from multiprocessing.shared_memory import SharedMemory
from ahpa_scale.data.stream import build_loader
def leave(name):
    left = SharedMemory(name, create=True, size=4096)
    left.buf[:2] = b"{}"
first = build_loader(sys.argv[1], batch_size=4)
"""
READ_ALL = """
for kind in ("resume", "epoch_shape", "epoch_data"):
    leave(f"000001_{kind}")
second = build_loader(sys.argv[1], batch_size=4)
assert second.dataset._shm_prefix_int == 1
print(sum(len(batch["index"]) for _ in range(2) for batch in second))
"""
FIND_A_NUMBER = """
leave("000001_barrier")
leave("000002_next_epoch")
second = build_loader(sys.argv[1], batch_size=4)
print(second.dataset._shm_prefix_int)
"""
LEFT_TO_THE_TRACKER = """
import os
os._exit(0)
"""
ENDING = """
import threading
ending = SharedMemory("000001_barrier", create=True, size=4096)
def end():
    ending.unlink()
    print("found its own")
threading.Timer(1, end).start()
second = build_loader(sys.argv[1], batch_size=4)
print(second.dataset._shm_prefix_int)
"""
CACHE_TWICE = """
reads = build_loader(sys.argv[1], local="cache", batch_size=4)
try:
    build_loader(sys.argv[1], local="cache", batch_size=4)
except ValueError as error:
    print(error)
print(len(list(reads)))
"""


def test_what_a_killed_job_left_in_shared_memory_stops_nobody(prepared, tmp_path):
    done = with_shared_memory_of_its_own(READ_ALL, prepared, tmp_path)
    assert done.stdout == f"{2 * COUNT}\n", done.stderr


def test_numbers_of_killed_jobs_are_free_again(prepared, tmp_path):
    done = with_shared_memory_of_its_own(FIND_A_NUMBER, prepared, tmp_path)
    assert done.stdout == "1\n", done.stderr


def test_a_rank_that_is_cut_off_leaves_its_memory_without_a_word(prepared, tmp_path):
    done = with_shared_memory_of_its_own(LEFT_TO_THE_TRACKER, prepared, tmp_path)
    assert done.stderr == ""


def test_a_job_that_is_ending_still_finds_its_memory(prepared, tmp_path):
    """Its ranks end one after another, and the first takes its list of folders along."""
    done = with_shared_memory_of_its_own(ENDING, prepared, tmp_path)
    assert done.stdout == "found its own\n1\n", done.stderr


def test_a_cache_in_use_is_told(prepared, tmp_path):
    """In a memory of its own: streaming misses a user beyond a number that just became free."""
    done = with_shared_memory_of_its_own(CACHE_TWICE, prepared, tmp_path)
    told, batches = done.stdout.splitlines()
    assert re.match(r"the cache folder cache/\w+ is in use by another run", told), done.stderr
    assert int(batches) == COUNT // 4


def with_shared_memory_of_its_own(
    work: str, prepared: str, folder: Path
) -> subprocess.CompletedProcess[str]:
    """A process that has shared memory and locks to itself: its numbers are known."""
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /dev/shm && exec "$@"', "sh",
         *warmed(sys.executable, "-c", LEAVE + work, prepared)], cwd=folder,
        env={**variables(), "TMPDIR": str(folder)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "unshare failed" in done.stderr:
        pytest.skip(f"no mount namespaces on this machine: {done.stderr.strip()}")
    return done
