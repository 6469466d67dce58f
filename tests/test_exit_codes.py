# SPDX-License-Identifier: Apache-2.0
"""Only a check of ours, or what a user can mend, ends with exit code 2; a fault of the software, or
of a library, shows its traceback.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from job import run

from ahpa_scale import cli, typed_json
from ahpa_scale.checkpoint.manifest import Manifest
from ahpa_scale.commands.evaluate.rows import Rows
from ahpa_scale.config.errors import exit_on_user_error
from ahpa_scale.config.load import load_yaml
from ahpa_scale.disk_errors import mendable
from ahpa_scale.errors import HostError, UserError
from ahpa_scale.models.vae import FrozenVAE
from ahpa_scale.storage import RefusedError
from ahpa_scale.unreachable import UnreachableError

ROOT = Path(__file__).parents[1]
PROGRAM = (sys.executable, "-m", "ahpa_scale.cli")
YAML = str(ROOT / "yamls" / "demo-ahpa.yaml")
FAULTS = (
    ValueError("a tensor's shape"),
    KeyError("a column"),
    TypeError("an argument"),
    RuntimeError("of torch"),
    OSError("a library's own words"),
    OSError("a library's own words about s3://bucket/x"),
    OSError(errno.EMFILE, os.strerror(errno.EMFILE), "/some/file"),
    OSError(errno.EINVAL, os.strerror(errno.EINVAL)),
    BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)),
    ChildProcessError(errno.ECHILD, os.strerror(errno.ECHILD)),
)
MENDABLE = (
    (UserError("a key"), 2, "a key"),
    (UnreachableError("a hub"), 75, "a hub"),
    (FileNotFoundError("nothing at s3://bucket/x"), 2, "nothing at s3://bucket/x"),
    (FileExistsError("/x exists already"), 2, "/x exists already"),
    (RefusedError("cannot use s3://bucket/x: Forbidden"), 2, "cannot use s3://bucket/x: Forbidden"),
    (OSError(errno.EACCES, "Permission denied", "/x"), 2, "/x: Permission denied"),
    (OSError(errno.ENOSPC, "No space left on device"), 2, "writing: No space left on device"),
    (OSError(errno.EISDIR, "Is a directory", "/x"), 2, "/x: Is a directory"),
    (OSError(errno.EROFS, "Read-only file system", b"/x"), 2, "/x: Read-only file system"),
    (OSError(errno.ENOENT, "No such file", "/a", None, "/b"), 2, "/a to /b: No such file"),
)


@pytest.fixture(params=["command", "training"])
def door(request, monkeypatch):
    """What raises an error inside of one of the two programs."""

    def enter(error: BaseException) -> None:
        def fail(*_: object, **__: object) -> None:
            raise error

        if request.param == "command":
            monkeypatch.setattr(cli, "app", fail)
            cli.main(["anything"])
        else:
            with exit_on_user_error():
                fail()

    return enter


@pytest.mark.parametrize("error", FAULTS, ids=repr)
def test_a_fault_of_the_software_shows_its_traceback(error, door):
    with pytest.raises(type(error)) as caught:
        door(error)
    assert caught.value is error


@pytest.mark.parametrize(("error", "code", "line"), MENDABLE, ids=lambda one: repr(one)[:60])
def test_what_a_user_can_mend_is_one_line(error, code, line, door, capsys):
    with pytest.raises(SystemExit) as caught:
        door(error)
    assert caught.value.code == code
    assert capsys.readouterr().err == f"error: {line}\n"


def test_a_real_errors_name_is_told(tmp_path):
    (tmp_path / "file").write_text("x")
    for broken in (tmp_path / "none", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=r"none|below") as caught:
            broken.read_text()
        assert str(mendable(caught.value)).startswith(f"{broken}: ")


def test_a_librarys_error_before_training_ends_with_1_and_its_traceback():
    program = (
        "import ahpa_scale.run.main as program\n"
        "def load_config(argv): raise ValueError('of a library')\n"
        "program.load_config = load_config\n"
        "program.main(['x.yaml'])\n"
    )
    done = run(sys.executable, "-c", program)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ValueError: of a library" in done.stderr


def test_a_disk_that_is_full_is_named_by_what_was_written(tmp_path):
    done = subprocess.run(
        [*PROGRAM, "demo-images", "--num-samples=1", "--size=64", "--out", str(tmp_path / "x")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1] == f"error: {tmp_path}/x: File too large"
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_when_weights_are_written_is_named_too(saved: Path, tmp_path: Path):
    done = subprocess.run(
        [*PROGRAM, "checkpoints", "export", str(saved / "ba2"), str(tmp_path / "w.safetensors")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(r"error: \S+/w.safetensors: File too large", done.stderr.splitlines()[-1])
    assert not list(tmp_path.glob("*w.safetensors*"))


def test_a_disk_that_fails_in_training_is_no_mistake_of_the_input():
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x")
    with pytest.raises(OSError, match="No space left"), exit_on_user_error(shared=False):
        raise error


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["train.py", YAML, "data.local={here}/none"], "no data set at {here}/none"),
        (["train.py", YAML, "output_dir={here}/file/x"], "{here}/file/x can't be written to"),
        (["train.py", "{here}"], "this is a folder; name a YAML file in it"),
        (["train.py", "{here}/latin.yaml"], "not UTF-8 text (byte 2)"),
        (["train.py", "{here}/empty.yaml"], "the file is empty"),
        (["train.py", "--help"], "name a YAML file: composer train.py yamls/<run>.yaml"),
        (["train.py", YAML, b"run_name=\xff"], r"'run_name=\udcff' is not UTF-8 text"),
        (["-m", "ahpa_scale.cli", "launch", "-n0", "train.py", YAML], "--nproc: 0 must be at"),
        (["-m", "ahpa_scale.cli", "demo-images", "--out", b"\xff"], r"'\udcff' is not UTF-8"),
        (["-m", "ahpa_scale.cli", "demo-images", "--out", "{here}/file/x"], "{here}/file"),
        (["-m", "ahpa_scale.cli", "unpack-idx", "{here}", "--out", "{here}/x"], "{here}"),
        (["-m", "ahpa_scale.cli", "checkpoints", "ls", "{here}/none"], "{here}/none"),
        (["-m", "experiments", "report", "{here}/none", "--out", "{here}/x"], "{here}/none"),
    ],
    ids=lambda one: " ".join(map(str, one[-2:])) if isinstance(one, list) else "",
)
def test_a_users_mistakes_end_with_2_as_a_program(words, line, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "latin.yaml").write_bytes(b"a:\xe9\n")
    (tmp_path / "empty.yaml").write_bytes(b"")
    given = (word.format(here=tmp_path) if isinstance(word, str) else word for word in words)
    done = run(sys.executable, *given)
    assert done.returncode == 2, done.stderr
    [said] = done.stderr.splitlines()
    assert said.startswith("error: ")
    assert line.format(here=tmp_path) in said


@pytest.mark.parametrize(
    ("gpus", "rank", "setting", "line"),
    [
        (0, 0, "device=gpu", "command line: device: torch finds no gpu here; set device=cpu"),
        (2, 2, "device=gpu", "command line: device: 4 ranks, and torch finds 2 gpus here"),
        (2, 3, "seed=1", "device: 4 ranks, and torch finds 2 gpus here"),
        (0, 0, "precision=amp_fp16", "command line: precision: 'amp_fp16' needs a gpu"),
    ],
)
def test_a_device_that_is_not_there_is_one_line(gpus, rank, setting, line, monkeypatch):
    from ahpa_scale.run.device import chosen_device

    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(HostError) as caught:
        chosen_device(load_yaml(ROOT / "yamls" / "dit-b-ahpa.yaml", [setting]))
    assert line in str(caught.value)


def test_the_command_line_of_typer_keeps_its_own_code():
    with pytest.raises(SystemExit) as caught:
        cli.main(["no-such-command"])
    assert caught.value.code == 2
    assert isinstance(cli.app, typer.Typer)


@pytest.mark.parametrize("bug", [ValueError("a bug"), TypeError("a bug"), KeyError("a bug")])
def test_a_bug_while_a_file_is_read_is_not_the_files_fault(bug, tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise bug

    manifest = Manifest(*[1] * 3, *"abc", 1, {}, None, {}, {})
    (tmp_path / "evaluation.jsonl").write_text("{}\n")
    reads = [
        ("snapshot_download", lambda: FrozenVAE.from_pretrained("organisation/name")),
        ("fit", lambda: Manifest.from_json(manifest.to_json())),
        ("fit", lambda: Rows(str(tmp_path))),
    ]
    for name, read in reads:
        with monkeypatch.context() as patched:
            place = typed_json if name == "fit" else sys.modules[FrozenVAE.__module__]
            patched.setattr(place, name, fail)
            with pytest.raises(type(bug)) as caught:
                read()
            assert caught.value is bug
