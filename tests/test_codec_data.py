# SPDX-License-Identifier: Apache-2.0
"""Data sets with a codec: what is stored, who shares it, and what a damaged one says."""

from __future__ import annotations

import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from data_sets import COUNT, GRID, LEVELS, SIZE, batches, everything
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from job import CLI, run
from s3_server import BUCKET, s3_server

from ahpa_scale import storage
from ahpa_scale.data.card import DatasetCard, read_card, write_card
from ahpa_scale.data.codec_file import (
    CODEC_NAME,
    codec_digest,
    codec_header,
    parse_codec,
    read_codec,
)
from ahpa_scale.data.level_sample import sampled_positions
from ahpa_scale.data.parts import prepare_part
from ahpa_scale.data.prepare import prepare
from ahpa_scale.data.settings import Part
from ahpa_scale.data.sources import FolderSource
from ahpa_scale.data.stream import build_loader
from ahpa_scale.errors import UserError
from ahpa_scale.models.level_targets import encode_levels, encode_targets
from ahpa_scale.models.vae import FrozenVAE


def images(pictures: Path) -> torch.Tensor:
    source = FolderSource(str(pictures), size=SIZE)
    read = [torch.from_numpy(source.read(i).image_HWC) for i in range(COUNT)]
    return torch.stack(read).permute(0, 3, 1, 2)


def test_stored_levels_are_those_of_a_direct_encode(prepared, pictures, vae_path):
    card, vae = read_card(prepared), FrozenVAE.from_pretrained(vae_path)
    codec = read_codec(prepared, card)
    assert codec is not None
    exact = encode_levels(vae, images(pictures), LEVELS, GRID, codec).priors
    online = encode_targets(vae, images(pictures), LEVELS, GRID, codec).priors
    found = batches(prepared)
    for level in LEVELS:
        stored = everything(found, f"prior.{level}")
        assert stored.dtype == online[level].dtype == torch.float16
        assert stored.shape[1] == card.prior_channels[level] == codec.codes[level].dims
        step_K11 = codec.codes[level].step_K[:, None, None]
        off = (stored.float() - exact[level]).abs() / step_K11
        # Half a step, the noise of another batch size, and float16; few values are cut off.
        assert (off > 0.6).float().mean() < 0.01
        assert (stored == online[level]).float().mean() > 0.999


def test_the_card_tells_what_each_level_keeps(prepared):
    card = read_card(prepared)
    assert card.prior_dtype == "int8"
    assert card.codec is not None
    assert card.codec.recipe == "residual"
    assert card.codec.pictures == COUNT
    assert [level.name for level in card.codec.levels] == list(LEVELS)
    assert all(level.cosine > 0.97 for level in card.codec.levels)
    assert card.codec.levels[-1].increment == 1
    content = (Path(prepared) / CODEC_NAME).read_bytes()
    assert card.codec.digest == codec_digest(content)
    assert DatasetCard.from_json(card.to_json()) == card


def test_a_card_of_before_has_pooled_levels(pooled, tmp_path):
    old = shutil.copytree(pooled, tmp_path / "old")
    told = json.loads((old / "dataset.json").read_text())
    assert told.pop("codec") is None
    (old / "dataset.json").write_text(json.dumps(told))
    card = read_card(old)
    assert (card.codec, card.prior_dtype) == (None, "float16")
    assert card.prior_channels == {level.name: level.channels for level in card.levels}
    batch = next(iter(build_loader(str(old), batch_size=4)))
    assert batch[f"prior.{LEVELS[0]}"].shape == (4, 8, GRID, GRID)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_other_number_formats(dtype, pictures, vae_path, tmp_path):
    out = str(tmp_path / "set")
    options = {"size": SIZE, "batch_size": 10, "limit": 12, "progress": False}
    card = prepare(
        str(pictures), out, vae_path=vae_path, prior_dtype=dtype, codec="detail", **options
    )
    assert card.codec is not None
    assert card.codec.recipe == "detail"
    value = everything(batches(out, batch_size=4), f"prior.{LEVELS[0]}")
    assert value.dtype == getattr(torch, dtype)
    assert 0.3 < float(value.float().var()) < 3


def test_a_loader_without_levels_needs_no_codec(prepared, tmp_path):
    copy = shutil.copytree(prepared, tmp_path / "set")
    (copy / CODEC_NAME).unlink()
    assert len(list(build_loader(str(copy), batch_size=4, levels=()))) == COUNT // 4
    with pytest.raises(UserError, match=rf"{CODEC_NAME} is missing: copy the data set again"):
        build_loader(str(copy), batch_size=4)


def test_another_codec_is_one_line(prepared, tmp_path):
    copy = shutil.copytree(prepared, tmp_path / "set")
    content = bytearray((copy / CODEC_NAME).read_bytes())
    content[-1] ^= 1
    (copy / CODEC_NAME).write_bytes(content)
    with pytest.raises(UserError, match="is not the codec that the card tells of"):
        build_loader(str(copy), batch_size=4)
    card = read_card(copy)
    assert card.codec is not None
    (copy / CODEC_NAME).write_bytes(b"nothing")
    write_card(copy, replace(card, codec=replace(card.codec, digest=codec_digest(b"nothing"))))
    with pytest.raises(UserError, match=rf"{CODEC_NAME} cannot be read .*prepare the data again"):
        build_loader(str(copy), batch_size=4)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"prior_dtype": "int8", "codec": None}, "levels of int8 without a codec"),
        ({"levels": []}, "levels and codec differ"),
        ({"codec": {"recipe": "residual"}}, "codec"),
    ],
)
def test_a_card_that_contradicts_itself_is_refused(prepared, change, problem):
    told = json.loads(read_card(prepared).to_json())
    with pytest.raises(UserError, match=problem):
        DatasetCard.from_json(json.dumps({**told, **change}))


OPTIONS = {"vae_path": "demo", "size": 32, "num_samples": 12, "batch_size": 4, "progress": False}


def test_parts_share_the_codec_that_was_there_first(tmp_path):
    out = tmp_path / "set"
    prepare_part("demo", str(out), Part(1, 2), **OPTIONS)
    content, made = (out / CODEC_NAME).read_bytes(), (out / CODEC_NAME).stat().st_mtime_ns
    card = prepare_part("demo", str(out), Part(0, 2), **OPTIONS)
    assert card is not None
    assert card.codec is not None
    assert card.codec.digest == codec_digest(content)
    assert (out / CODEC_NAME).stat().st_mtime_ns == made


def test_a_part_of_another_codec_does_not_join(tmp_path):
    out = tmp_path / "set"
    prepare_part("demo", str(out), Part(1, 2), **OPTIONS)
    told = json.loads((out / "part-00001-of-00002" / "part.json").read_text())
    told["codec"] = "0" * 64
    (out / "part-00001-of-00002" / "part.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match=r"part\.json was encoded with another level_codec"):
        prepare_part("demo", str(out), Part(0, 2), **OPTIONS)
    assert not (out / "dataset.json").exists()
    shutil.rmtree(out / "part-00001-of-00002")
    shutil.rmtree(out / "part-00000-of-00002")
    with pytest.raises(UserError, match=r"level_codec.* belongs to a preparation with other opti"):
        prepare_part("demo", str(out), Part(0, 2), **{**OPTIONS, "num_samples": 13})


def test_of_many_writers_at_once_one_wins(tmp_path):
    where = tmp_path / "file"
    contents = [bytes([number]) * 1000 for number in range(16)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda content: storage.write_new(where, content), contents))
    first = where.read_bytes()
    assert first in contents
    storage.write_new(where, b"later")
    assert where.read_bytes() == first
    assert os.listdir(tmp_path) == ["file"]


def test_a_store_keeps_what_was_there_first(tmp_path, monkeypatch):
    with s3_server(tmp_path) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        url = f"s3://{BUCKET}/file"
        for content in (b"first", b"later"):
            storage.write_new(url, content)
        assert storage.read_bytes(url) == b"first"


def test_the_sample_depends_on_the_number_of_pictures_alone():
    assert sampled_positions(5, 8) == [0, 1, 2, 3, 4]
    chosen = sampled_positions(1000, 64)
    assert chosen == sampled_positions(1000, 64) == sorted(set(chosen))
    assert len(chosen) == 64
    assert max(chosen) > 900
    assert min(chosen) < 100


def test_the_report_prints_a_table_and_writes_nothing(tmp_path):
    words = ["--size", 32, "--num-samples", 60, "--sample", 60, "--out", tmp_path / "set"]
    done = run(CLI, "prepare", "demo", *words, "--report")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1].split() == ["1", "encoder.down_blocks.0.resnets.0"]
    rows = [line.split() for line in lines[6:]]
    assert [row[:4] for row in rows] == [
        ["pooled", "all", "float16", "9.0"],
        ["detail", "64", "int8", "3.0"],
        ["residual", "32", "int8", "1.5"],
        ["residual", "64", "int8", "3.0"],
        ["residual", "64", "bfloat16", "6.0"],
        ["residual", "128", "int8", "6.0"],
    ]
    increments = {" ".join(row[:3]): [float(x) for x in row[9:13]] for row in rows}
    fine = zip(
        increments["residual 64 int8"][:3], increments["pooled all float16"][:3], strict=True
    )
    assert all(ours > 5 * theirs for ours, theirs in fine)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--codec", "folded"], "codec must be one of residual, detail, pooled, not 'folded'"),
        (["--codec", "pooled", "--prior-dtype", "int8"], "codec 'pooled' has no int8"),
        (["--codec", "pooled", "--level-dims", 8], "codec 'pooled' keeps all channels"),
        (["--level-dims", 0], "level_dims must be at least 1, not 0"),
        (["--sample", 0], "sample must be at least 1, not 0"),
    ],
)
def test_bad_options_are_one_line(words, message, tmp_path):
    command = ["-m", "ahpa_scale.cli", "prepare", "demo", "--out", tmp_path / "set"]
    done = run(sys.executable, *command, *words)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert not (tmp_path / "set").exists()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_strange_codec_file_is_one_line_or_a_codec(prepared, data):
    """Whoever made the data set may have put anything there, and told its digest."""
    content = bytearray((Path(prepared) / CODEC_NAME).read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    where = data.draw(st.integers(0, header - 1))
    if data.draw(st.booleans()):
        content[where] = data.draw(st.integers(0, 255))
    else:
        del content[where : where + data.draw(st.integers(1, 64))]
    for read in (
        lambda: codec_header(bytes(content), "the file"),
        lambda: parse_codec(bytes(content), read_card(prepared), "the file"),
    ):
        with suppress(UserError):
            read()
