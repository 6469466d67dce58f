# SPDX-License-Identifier: Apache-2.0
"""The command line as a user meets it: real processes, exit codes, one-line errors, kills."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from job import variables, warmed
from PIL import Image

from ahpa_scale.data.card import read_card
from ahpa_scale.data.idx import read_idx, unpack_idx
from ahpa_scale.data.prepare import prepare
from ahpa_scale.data.sources import FolderSource
from ahpa_scale.errors import UserError


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = warmed(sys.executable, "-m", "ahpa_scale.cli", *arguments)
    return subprocess.run(
        command, env=variables(), capture_output=True, text=True, timeout=600, **options
    )


def refused(*arguments: object) -> str:
    """The error line of a command that must fail as a user's mistake."""
    done = run(*arguments)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert lines[-1].startswith("error: "), done.stderr
    assert "Traceback" not in done.stderr
    return lines[-1]


def test_help_is_immediate():
    """It loads nothing that takes long: how long that is depends on the machine."""
    code = (
        "import atexit, sys; from ahpa_scale.cli import main\n"
        "slow = {'torch', 'numpy', 'streaming'}\n"
        "atexit.register(lambda: print('loaded', slow & set(sys.modules)))\n"
        "main(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command in ("prepare", "train-vae", "unpack-idx", "demo-images"):
        assert command in done.stdout
    assert done.stdout.endswith("loaded set()\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kind", "latent"], "kind must be one of latents, images, not 'latent'"),
        (["--scaling", "none"], "scaling must be one of config, channel"),
        (["--prior-dtype", "float8"], "prior_dtype must be one of int8, float16, bfloat16"),
        (["--size", "0"], "size must be at least 1"),
        (["--shuffle-seed", "1"], "shuffle_seed is for stored pictures"),
        (["--features", "folder"], "can only be 'oracle'"),
        (["--out", "hf://bucket/set"], "local folder, s3://, gs:// or az://"),
    ],
)
def test_wrong_options_are_one_line(arguments, message, tmp_path):
    assert message in refused("prepare", "demo", "--out", tmp_path / "set", *arguments)
    assert os.listdir(tmp_path) == []


def test_typos_are_usage_errors(tmp_path):
    for arguments in (["preparre"], ["prepare", "demo", "--outt", tmp_path], ["prepare", "demo"]):
        done = run(*arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


def test_a_broken_picture_is_one_line_and_leaves_nothing(vae_path, tmp_path):
    common = ["--vae", vae_path, "--out", tmp_path / "set", "--no-progress"]
    (tmp_path / "pictures" / "ant").mkdir(parents=True)
    (tmp_path / "pictures" / "ant" / "bad.png").write_bytes(b"no picture")
    common += ["--class-depth", "1", "--size", "32"]
    line = refused("prepare", tmp_path / "pictures", *common)
    assert "1 of 1 pictures cannot be read" in line
    assert "bad.png" in line
    assert os.listdir(tmp_path) == ["pictures"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "demmo"}, "did you mean 'demo'"),
        ({"size": 30}, "size 30 is no multiple of the VAE's downsampling 4: the nearest is 32"),
        ({"grid": 9}, "grid 9 is finer than the latent of 8x8"),
        ({"levels": ("encoder.down_blocks.0.resnets.9",)}, "did you mean encoder.down_blocks.0"),
        ({"kind": "images", "levels": ("x",)}, "stores no levels"),
        ({"vae_path": "nowhere"}, "nowhere"),
        ({"preset": "esay"}, "esay"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used here"),
        ({"shard_size": "much"}, "shard_size 'much' is not below 4gb: write"),
        ({"shard_size": "0.5gb"}, "write a whole number"),
        ({"shard_size": "4gb"}, "not below 4gb"),
        ({"source": "folder", "preset": "easy"}, "preset is for the demo source"),
        ({"source": "folder", "features": "oracle"}, "exist for the demo source only"),
    ],
)
def test_the_function_refuses_the_same_way(options, message, vae_path, tmp_path):
    fixed = {"source": "demo", "vae_path": vae_path, "size": 32, "progress": False}
    with pytest.raises(UserError, match=message) as caught:
        prepare(out=str(tmp_path / "set"), **{**fixed, **options})
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_prepare_writes_a_whole_set_and_says_what_it_wrote(vae_path, tmp_path):
    out = tmp_path / "set"
    arguments = ["prepare", "demo", "--out", out, "--vae", vae_path, "--size", "32"]
    arguments += ["--num-samples", "20", "--preset", "hard", "--start", "100", "--grid", "4"]
    arguments += ["--level", "encoder.mid_block", "--features", "oracle"]
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert "20 pictures, 24 classes, kind latents, latent 4x8x8, grid 4, 1 levels" in done.stdout
    assert "20/20" in done.stderr
    card = read_card(out)
    assert card.level_names == ("encoder.mid_block",)
    assert card.external_channels is not None
    assert card.source == "demo hard, seed 0, pictures 100 to 119"


def test_a_killed_run_leaves_nothing_that_reads_as_a_set(vae_path, tmp_path):
    out = tmp_path / "set"
    options = {"vae_path": vae_path, "size": 32, "progress": False}
    old = prepare("demo", str(out), num_samples=5, **options)
    arguments = ["prepare", "demo", "--out", out, "--vae", vae_path, "--size", "32"]
    arguments += ["--num-samples", "100000", "--shard-size", "50kb", "--overwrite", "--no-progress"]
    process = subprocess.Popen([sys.executable, "-m", "ahpa_scale.cli", *map(str, arguments)])
    try:
        deadline = time.monotonic() + 600
        while not list(tmp_path.rglob("*partial*/**/shard.00001.mds")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    # The old set is untouched, and no other folder passes for one.
    assert read_card(out) == old
    assert [path.parent for path in tmp_path.rglob("dataset.json")] == [out]
    assert len(os.listdir(tmp_path)) == 2
    new = prepare("demo", str(out), num_samples=6, overwrite=True, **options)
    assert read_card(out) == new
    assert os.listdir(tmp_path) == ["set"]


def save_idx(folder: Path, stem: str, images_NHW: np.ndarray, labels_N: np.ndarray) -> None:
    for kind, array in (("images-idx3", images_NHW), ("labels-idx1", labels_N)):
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        content = header + array.tobytes()
        path = folder / f"{stem}-{kind}-ubyte"
        if stem == "train":
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
        else:
            path.write_bytes(content)


@pytest.fixture
def idx(tmp_path) -> Path:
    folder = tmp_path / "idx"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for stem, count in (("train", 40), ("t10k", 20)):
        images_NHW = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        save_idx(folder, stem, images_NHW, np.arange(count, dtype=np.uint8) % 10)
    return folder


def test_idx_files_become_an_image_folder_with_the_same_labels(idx, tmp_path):
    out = tmp_path / "pictures"
    done = run("unpack-idx", idx, "--out", out, "--limit", "30")
    assert done.returncode == 0, done.stderr
    assert "30 train, 20 test" in done.stdout
    source = FolderSource(str(out / "train"), size=32)
    assert source.classes[0] == "0-t-shirt"
    assert source.classes[9] == "9-ankle-boot"
    assert len(source) == 30
    images_NHW = read_idx(idx / "train-images-idx3-ubyte.gz")
    for i in range(len(source)):
        picture = source.read(i)
        number = int(Path(picture.name).stem)
        assert picture.label == number % 10
        np.testing.assert_array_equal(picture.image_HWC[2:30, 2:30, 0], images_NHW[number])
        frame = picture.image_HWC.copy()
        frame[2:30, 2:30] = 0
        assert not frame.any()
    assert "exists already" in refused("unpack-idx", idx, "--out", out)


def test_idx_files_that_do_not_fit_are_named(idx, tmp_path):
    out = str(tmp_path / "pictures")
    with pytest.raises(ValueError, match="leaves a class of train without pictures; use 10"):
        unpack_idx(str(idx), out, limit=9)
    with pytest.raises(ValueError, match="names must be one of"):
        unpack_idx(str(idx), out, names="letters")
    with pytest.raises(ValueError, match="smaller than the pictures"):
        unpack_idx(str(idx), out, side=20)
    labels = idx / "t10k-labels-idx1-ubyte"
    content = labels.read_bytes()
    labels.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="cut short"):
        unpack_idx(str(idx), out)
    labels.write_bytes(b"\x1f\x8b" + content)
    with pytest.raises(ValueError, match="not an idx file"):
        unpack_idx(str(idx), out)
    labels.unlink()
    with pytest.raises(ValueError, match=r"no t10k-labels-idx1-ubyte\(.gz\)"):
        unpack_idx(str(idx), out)
    assert not Path(out).exists()


@pytest.mark.parametrize(
    ("sides", "packed", "problem"),
    [
        ([60, 10], 500 << 20, "longer than it says"),
        ([1 << 31, 1 << 31, 1 << 31], 0, "promises .*, more than"),
        ([60, 10], 599, "cut short"),
        ([], 0, "longer than it says"),
    ],
)
def test_an_idx_file_is_unpacked_as_far_as_it_says_it_goes(sides, packed, problem, tmp_path):
    path = tmp_path / "x.gz"
    with gzip.open(path, "wb", 1) as file:
        file.write(bytes([0, 0, 8, len(sides)]) + b"".join(n.to_bytes(4, "big") for n in sides))
        for _ in range(max(1, packed >> 20)):
            file.write(bytes(min(packed or 2, 1 << 20)))
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=problem):
            read_idx(path)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


def test_demo_images_can_be_looked_at(tmp_path):
    out = tmp_path / "look"
    done = run("demo-images", "--out", out, "--num-samples", "12", "--size", "32")
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (out / "factors.jsonl").read_text().splitlines()]
    assert [record["index"] for record in records] == list(range(12))
    files = sorted(out.glob("*/*.png"))
    assert [int(path.stem) for path in sorted(files, key=lambda p: p.stem)] == list(range(12))
    with Image.open(out / "contact-sheet.png") as sheet:
        assert sheet.width > 8 * 32


def test_train_vae_makes_a_vae_that_prepare_takes(tmp_path):
    vae, out = tmp_path / "vae", tmp_path / "set"
    rng = np.random.default_rng(0)
    for i in range(24):
        path = tmp_path / "pictures" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path)
    arguments = ["--steps", "2", "--batch-size", "4", "--widths", "8,16", "--no-progress"]
    line = refused("train-vae", tmp_path / "pictures", "--out", vae, *arguments)
    assert "give size with stored pictures" in line
    done = run("train-vae", tmp_path / "pictures", "--size", "16", "--out", vae, *arguments)
    assert done.returncode == 0, done.stderr
    assert "dB" in done.stdout
    options = {"vae_path": str(vae), "size": 16, "progress": False}
    card = prepare(str(tmp_path / "pictures"), str(out), **options)
    assert card.vae.downsample == 2
