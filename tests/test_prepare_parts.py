# SPDX-License-Identifier: Apache-2.0
"""A data set that several processes prepare is the one that a single process makes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from data_sets import batches, everything
from job import run
from s3_server import BUCKET, s3_server

from ahpa_scale.data.card import read_card, read_prior_statistics
from ahpa_scale.data.codec_file import CODEC_NAME
from ahpa_scale.data.parts import prepare_part
from ahpa_scale.data.prepare import prepare
from ahpa_scale.data.settings import Part
from ahpa_scale.errors import UserError

#: Parts of whole batches: a picture's last bits depend on those beside it in its batch.
OPTIONS = {"size": 32, "num_samples": 24, "batch_size": 4, "progress": False, "scaling": "channel"}
COUNT = 3


def make(out: str, *order: int, count: int = COUNT, **options: object):
    settings = {**OPTIONS, "vae_path": "demo", **options}
    return [prepare_part("demo", out, Part(index, count), **settings) for index in order]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> str:
    out = str(tmp_path_factory.mktemp("whole") / "set")
    prepare("demo", out, vae_path="demo", **OPTIONS)
    return out


def assert_same(out: str, whole: str, **options: object) -> None:
    found, wanted = batches(out, **options), batches(whole)
    for key in wanted[0]:
        assert torch.equal(everything(found, key), everything(wanted, key)), key
    mine, theirs = read_card(out), read_card(whole)
    assert mine.num_samples == theirs.num_samples == OPTIONS["num_samples"]
    assert mine.classes == theirs.classes
    for name in ("shift", "scale"):
        one, two = (torch.tensor(getattr(c.scaling, name)) for c in (mine, theirs))
        assert torch.allclose(one, two, rtol=1e-6, atol=1e-7)
    mine, theirs = read_prior_statistics(out), read_prior_statistics(whole)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.allclose(value, theirs[name], rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize(("total", "count"), [(22, 3), (3, 3), (1000, 7), (5, 1)])
def test_every_picture_is_in_one_part(total, count):
    spans = [Part(index, count).span(total) for index in range(count)]
    assert [position for span in spans for position in span] == list(range(total))
    assert max(map(len, spans)) - min(map(len, spans)) <= 1


def test_parts_in_any_order_make_the_whole(whole, tmp_path):
    out = str(tmp_path / "set")
    first, second, last = make(out, 2, 0, 1)
    assert first is None
    assert second is None
    assert last == read_card(out)
    assert_same(out, whole)


def test_a_part_that_is_there_is_kept_and_a_finished_set_is_left_alone(tmp_path):
    out = tmp_path / "set"
    make(str(out), 0, 1)
    shard = next((out / "part-00000-of-00003").glob("*.mds"))
    before = shard.stat().st_mtime_ns
    assert make(str(out), 0) == [None]
    make(str(out), 2)
    made = (out / "dataset.json").stat().st_mtime_ns
    again = make(str(out), 0, 1, 2)
    assert shard.stat().st_mtime_ns == before
    assert (out / "dataset.json").stat().st_mtime_ns == made
    assert again == [read_card(out)] * 3


def test_parts_in_an_object_store(whole, tmp_path, monkeypatch):
    (tmp_path / "server").mkdir()
    with s3_server(tmp_path / "server") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        out = f"s3://{BUCKET}/set"
        make(out, 1, 2)
        assert not [key for key in server.keys("set") if key.endswith("dataset.json")]
        assert make(out, 0) == [read_card(out)]
        assert_same(out, whole, local=str(tmp_path / "cache"))


def test_a_part_of_other_options_is_refused(tmp_path):
    out = str(tmp_path / "set")
    make(out, 0)
    with pytest.raises(
        ValueError, match=r"part-00000-of-00003/part\.json belongs to a prep.*other"
    ):
        make(out, 0, num_samples=23)
    with pytest.raises(ValueError, match="other options, pictures, VAE or torch"):
        make(out, 1, num_samples=23)
    there = sorted(path.name for path in (tmp_path / "set").iterdir())
    assert there == [CODEC_NAME, "part-00000-of-00003"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--part", "0"], "part 0 of how many? give parts"),
        (["--parts", "2"], "which of the 2 parts? give part, 0 to 1"),
        (["--parts", "2", "--part", "2"], "part must be 0 to 1 with 2 parts, not 2"),
        (["--parts", "0", "--part", "0"], "parts must be 1 to 10000, not 0"),
        (["--parts", "2", "--part", "0", "--overwrite"], "with parts, choose another out"),
        (["--parts", "9", "--part", "0", "--num-samples", "8"], "8 pictures make no 9 parts"),
    ],
)
def test_bad_input_is_one_line(words, message, tmp_path):
    command = ["-m", "ahpa_scale.cli", "prepare", "demo", "--size", "32"]
    done = run(sys.executable, *command, "--out", tmp_path / "set", *words)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert message in done.stderr
    assert not (tmp_path / "set").exists()


def test_another_data_set_is_not_touched(whole, tmp_path):
    with pytest.raises(FileExistsError, match="holds a data set already"):
        make(whole, 0)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds something else"):
        make(str(tmp_path), 0)
    make(str(tmp_path / "set"), 0, count=2)
    with pytest.raises(FileExistsError, match="holds something else"):
        make(str(tmp_path / "set"), 0, count=3)


def test_a_part_that_is_killed_leaves_nothing_that_counts(whole, tmp_path):
    out = tmp_path / "set"
    command = [sys.executable, "-m", "ahpa_scale.cli", "prepare", "demo", "--size", "32"]
    command += ["--num-samples", "24", "--batch-size", "4", "--scaling", "channel"]
    command += ["--parts", "3", "--part", "1", "--out", str(out), "--no-progress"]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 600
    while not list(out.glob(".part-*/content/*")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL or (out / "part-00001-of-00003").exists()
    make(str(out), 0, 2)
    if process.returncode == -signal.SIGKILL:
        assert not (out / "dataset.json").exists()
    assert subprocess.run(command, check=False).returncode == 0
    assert_same(str(out), whole)
    assert {path.name for path in out.iterdir() if path.is_dir()} == {
        f"part-{index:05d}-of-00003" for index in range(3)
    }


def test_shards_of_all_parts_are_in_the_index(tmp_path):
    make(str(tmp_path / "set"), 0, 1, 2)
    index = json.loads((tmp_path / "set/index.json").read_text())
    names = [shard["raw_data"]["basename"] for shard in index["shards"]]
    assert names == sorted(names)
    assert all(os.path.exists(tmp_path / "set" / Path(name)) for name in names)


def _renamed(state: dict[str, torch.Tensor]) -> None:
    state["count/elsewhere"] = state.pop("priors/count/latent")


def _shortened(state: dict[str, torch.Tensor]) -> None:
    state["priors/mean/latent"] = state["priors/mean/latent"][:1].clone()


def _uncounted(state: dict[str, torch.Tensor]) -> None:
    state["channels/count"] = torch.tensor(0)


def _of_fewer_channels(state: dict[str, torch.Tensor]) -> None:
    for name in ("mean_C", "squares_C", "posterior_C"):
        state[f"channels/{name}"] = state[f"channels/{name}"][:1].clone()


@pytest.mark.parametrize("spoil", [_renamed, _shortened, _uncounted, _of_fewer_channels])
def test_statistics_of_something_else_are_one_line(tmp_path: Path, spoil):
    out = tmp_path / "set"
    make(str(out), 0, 1)
    where = out / "part-00001-of-00003" / "statistics.safetensors"
    state = safetensors.torch.load_file(where)
    spoil(state)
    safetensors.torch.save_file(state, where)
    with pytest.raises(
        UserError, match=r"part-00001-of-00003/statistics\.safetensors cannot be rea"
    ):
        make(str(out), 2)
    assert not (out / "dataset.json").exists()
