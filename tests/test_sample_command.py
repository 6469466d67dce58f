# SPDX-License-Identifier: Apache-2.0
"""`ahpa-scale sample`: the same pictures however they are drawn, in every format, without data."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from job import BIN, CLI, ROOT, run, variables, warmed
from numpy.typing import NDArray
from official_files import filled
from PIL import Image
from s3_server import BUCKET, s3_server

from ahpa_scale.models.flow import get_path
from ahpa_scale.run.drawable import open_model
from ahpa_scale.sampling.sampler import sample
from ahpa_scale.sampling.settings import SamplerSettings

NUM, CLASSES = 64, 8
WORDS = ["--num", NUM, "--steps", 4, "--method", "heun", "--guidance-scale", 2, "--no-progress"]


def newest(trained: Path) -> Path:
    return trained / "run" / "checkpoints" / "ba6"


def draw(checkpoint: object, out: Path, *words: object, ranks: int = 1) -> tuple[int, str]:
    start = [BIN / "composer", "-n", ranks, "-m", "ahpa_scale"] if ranks > 1 else [CLI]
    done = run(*start, "sample", checkpoint, out, *words)
    return done.returncode, done.stdout + done.stderr


def pictures(folder: Path) -> dict[str, NDArray[np.int16]]:
    found = {p.name: np.asarray(Image.open(p), np.int16) for p in folder.rglob("*.png")}
    return dict(sorted(found.items()))


def furthest(a: dict[str, NDArray[np.int16]], b: dict[str, NDArray[np.int16]]) -> int:
    assert a.keys() == b.keys()
    return max(int(np.abs(a[name] - b[name]).max()) for name in a)


@pytest.fixture(scope="module")
def drawn(trained, tmp_path_factory) -> Path:
    """All pictures by one process in one batch."""
    out = tmp_path_factory.mktemp("drawn") / "pictures"
    code, said = draw(newest(trained), out, *WORDS)
    assert code == 0, said
    assert f"{out}: 64 pictures by the averages of" in said
    return out


def test_a_folder_has_a_folder_for_each_class(trained, drawn):
    record = json.loads((drawn / "samples.json").read_text())
    assert record["complete"] is True
    assert len(record["classes"]) == CLASSES
    assert record["sampler"]["guidance_scale"] == 2.0
    for number, name in enumerate(record["classes"]):
        files = sorted((drawn / name).iterdir())
        assert [int(path.stem) for path in files] == list(range(number, NUM, CLASSES))
    assert {image.shape for image in pictures(drawn).values()} == {(32, 32, 3)}


@pytest.mark.parametrize(("ranks", "batch_size"), [(1, 8), (2, 64), (4, 8)])
def test_ranks_and_batch_size_change_nothing(trained, drawn, tmp_path, ranks, batch_size):
    out = tmp_path / "pictures"
    code, said = draw(newest(trained), out, *WORDS, "--batch-size", batch_size, ranks=ranks)
    assert code == 0, said
    assert furthest(pictures(out), pictures(drawn)) <= 1, "a float's last bits may round otherwise"


@pytest.mark.parametrize("method", ["euler", "heun", "sde", "dopri5"])
def test_latents_of_other_batches_differ_by_rounding_only(trained, method):
    model = open_model(str(newest(trained)))
    settings = SamplerSettings(method=method, steps=8, guidance_scale=2.0)
    told = model.description
    shape = (told.in_channels, told.input_size, told.input_size)

    def latents(index_B: torch.Tensor) -> torch.Tensor:
        return sample(
            model.backbone, labels_B=index_B % CLASSES, index_B=index_B, shape=shape,
            path=get_path(told.path), settings=settings,
        )  # fmt: skip

    index_N = torch.arange(NUM)
    whole = latents(index_N)
    for size in (1, 8):
        parts = torch.cat([latents(index_B) for index_B in index_N[:16].split(size)])
        assert (whole[:16] - parts).abs().max() <= 1e-4


def test_a_killed_command_goes_on_with_what_is_missing(trained, drawn, tmp_path):
    out = tmp_path / "pictures"
    words = ["sample", newest(trained), out, *WORDS, "--batch-size", 4]
    begun = subprocess.Popen(
        warmed(CLI, *words),
        cwd=ROOT,
        env=variables(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while len(list(out.rglob("*.png"))) < 8:
        assert begun.poll() is None
        time.sleep(0.05)
    os.killpg(begun.pid, signal.SIGKILL)
    begun.wait()
    there = {p: p.stat().st_mtime_ns for p in out.rglob("*.png") if not p.name.startswith(".")}
    if len(there) < NUM:
        assert json.loads((out / "samples.json").read_text())["complete"] is False
    code, said = draw(newest(trained), out, *WORDS)
    assert code == 0, said
    assert {path: path.stat().st_mtime_ns for path in there} == there, "none is drawn again"
    assert furthest(pictures(out), pictures(drawn)) <= 1


def test_an_npz_is_adms(trained, drawn, tmp_path):
    out = tmp_path / "samples.npz"
    code, said = draw(newest(trained), out, *WORDS, ranks=2)
    assert code == 0, said
    with np.load(out, allow_pickle=False) as stored:
        images, labels = stored["arr_0"], stored["arr_1"]
    assert images.dtype == np.uint8
    assert labels.tolist() == [n % CLASSES for n in range(NUM)]
    of_folder = np.stack(list(pictures(drawn).values()))
    assert np.abs(images.astype(np.int16) - of_folder).max() <= 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["samples.npz"], "no parts are left"
    code, said = draw(newest(trained), out, *WORDS, ranks=2)
    assert code == 2
    assert said.count("exists already") == 1
    assert "Traceback" not in said


def test_shards_and_a_grid(trained, drawn, tmp_path):
    from streaming import LocalDataset

    few = ["--num", 12, "--steps", 1, "--classes", "3,0", "--no-progress"]
    code, said = draw(newest(trained), tmp_path / "shards", *few, "--format", "mds")
    assert code == 0, said
    shards = LocalDataset(local=str(tmp_path / "shards"))
    assert [(s["index"], s["label"]) for s in shards] == [(n, [3, 0][n % 2]) for n in range(12)]
    code, said = draw(newest(trained), tmp_path / "grid.png", *few)
    assert code == 0, said
    grid = Image.open(tmp_path / "grid.png")
    # Pictures of 32 pixels are shown three times as large, with a gap of 2: two rows of six.
    assert grid.height == 2 * 98 - 2
    assert grid.width > 6 * 98
    last = np.asarray(grid.crop((grid.width - 96, 98, grid.width, 194)).resize((32, 32), 0))
    assert np.array_equal(last, np.asarray(shards[11]["image"]))


def test_other_settings_are_refused_and_overwrite_begins_anew(trained, drawn, tmp_path):
    out = tmp_path / "pictures"
    few = ["--num", 4, "--steps", 1, "--no-progress"]
    assert draw(newest(trained), out, *few)[0] == 0
    code, said = draw(newest(trained), out, *few, "--seed", 1)
    assert code == 2
    assert "holds samples of sampler seed 0, and now it is 1" in said
    before = pictures(out)
    assert draw(newest(trained), out, *few, "--seed", 1, "--overwrite")[0] == 0
    assert furthest(pictures(out), before) > 20
    # More of the same is no other setting.
    assert draw(newest(trained), out, "--num", 6, *few[2:], "--seed", 1)[0] == 0
    assert len(pictures(out)) == 6
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("not yours")
    code, said = draw(newest(trained), tmp_path / "full", *few, "--overwrite")
    assert code == 2
    assert "holds other files" in said
    assert (tmp_path / "full" / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num", "0"], "--num must be at least 1"),
        (["--classes", "dog"], "has no class 'dog'"),
        (["--classes", "8"], "has no class '8'"),
        (["--preset", "sit-sde"], "did you mean 'sit-sde250'"),
        (["--format", "grid"], "OUT must end in .png"),
        (["--guidance-interval", "0.9", "0.1"], "guidance_interval"),
        (["--device", "gpu0"], "device 'gpu0'"),
        (["--vae", "nowhere"], "nowhere"),
    ],
)
def test_a_mistake_is_one_line(trained, tmp_path, words, message):
    code, said = draw(newest(trained), tmp_path / "out", *words)
    assert code == 2, said
    (line,) = said.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "out").exists()


def test_a_weaker_checkpoint_guides(trained, tmp_path):
    few = ["--num", 4, "--steps", 2, "--no-progress"]
    own, by_other = tmp_path / "own", tmp_path / "by-other"
    assert draw(newest(trained), own, *few, "--guidance-scale", 2)[0] == 0
    words = ["--guidance-scale", 2, "--guide", newest(trained).parent / "ba2"]
    code, said = draw(newest(trained), by_other, *few, *words)
    assert code == 0, said
    assert furthest(pictures(own), pictures(by_other)) > 0
    record = json.loads((by_other / "samples.json").read_text())
    assert record["sampler"]["guide"].endswith("ba2")
    # A rank without a picture of its own does not keep the other waiting.
    alone = ["--num", 1, *few[2:], *words]
    code, said = draw(newest(trained), tmp_path / "one", *alone, ranks=2)
    assert code == 0, said


def test_checkpoint_and_pictures_in_a_store(trained, drawn, tmp_path):
    (tmp_path / "store").mkdir()
    with s3_server(tmp_path / "store") as server:
        client = server.client()
        for path in newest(trained).iterdir():
            client.upload_file(str(path), BUCKET, f"run/ba6/{path.name}")

        def stored(out: str, *words: object) -> None:
            place = [f"s3://{BUCKET}/run", f"s3://{BUCKET}/{out}"]
            done = run(CLI, "sample", *place, *words, environment=server.environment)
            assert done.returncode == 0, done.stderr

        stored("pictures", *WORDS)
        names = [path.relative_to(drawn).as_posix() for path in drawn.rglob("*.png")]
        assert server.keys("pictures/") == sorted(
            [f"pictures/{name}" for name in [*names, "samples.json"]]
        )
        stored("samples.npz", *WORDS)
        assert server.keys("samples") == ["samples.npz"], "no parts are left"
        client.download_file(BUCKET, "samples.npz", str(tmp_path / "samples.npz"))
        stored("shards", "--format", "mds", "--num", 4, "--steps", 1, "--no-progress")
        assert "shards/index.json" in server.keys("shards/")
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as images:
        of_folder = np.stack(list(pictures(drawn).values()))
        assert np.abs(images["arr_0"].astype(np.int16) - of_folder).max() <= 1


def test_an_official_file(tmp_path):
    torch.save(filled().state_dict(), tmp_path / "of-sd.pt")
    torch.save(filled(in_channels=8).state_dict(), tmp_path / "model.pt")
    few = ["--num", 4, "--steps", 2, "--vae", "demo", "--no-progress"]
    code, said = draw(tmp_path / "model.pt", tmp_path / "out", *few)
    assert code == 2
    assert "--as dit, --as sit or --as repa" in said
    code, said = draw(tmp_path / "of-sd.pt", tmp_path / "out", *few, "--as", "sit")
    assert code == 2
    assert "the VAE demo has 8 latent channels, and the model 4" in said
    drawn = {}
    for layout in ("dit", "sit", "repa"):
        code, said = draw(tmp_path / "model.pt", tmp_path / layout, *few, "--as", layout)
        assert code == 0, said
        drawn[layout] = pictures(tmp_path / layout)
        assert sorted(path.parent.name for path in (tmp_path / layout).rglob("*.png")) == [
            *("0", "1", "2", "3")
        ]
    assert furthest(drawn["sit"], drawn["repa"]) > 0, "their time runs the other way"
    assert furthest(drawn["dit"], drawn["repa"]) > 0
