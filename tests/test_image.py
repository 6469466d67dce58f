# SPDX-License-Identifier: Apache-2.0
"""The container image: built, locked, without root or secrets, and able to train and to prepare."""

from __future__ import annotations

import json
import re

import pytest
from image import SECRETS, Image
from job import FASTEST, ROOT, project
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from podman import added_files, podman

LOCKS = ["default", "new"]
#: As pods run it.
RESTRICTED = [
    "--read-only",
    "--read-only-tmpfs=false",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--network=none",
    "--tmpfs=/tmp:rw,mode=1777",
    "--tmpfs=/dev/shm:rw,mode=1777",
]


def text_of(lock: str) -> str:
    return (ROOT / f"requirements/{lock}.lock").read_text()


def locked(lock: str) -> dict[str, str]:
    """Name -> version of every locked package."""
    pairs = re.findall(r"^([\w.-]+)==([^\s\\]+)", text_of(lock), re.M)
    return {canonicalize_name(name): version for name, version in pairs}


def run(image: Image, *words: str, flags: tuple[str, ...] = ()) -> str:
    """What a command prints in a restricted container."""
    return podman("run", "--rm", *RESTRICTED, *image.flags, *flags, image.train, *words, both=True)


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_holds_what_the_package_asks_for(lock):
    extras = project()["optional-dependencies"]
    wanted = [*project()["dependencies"]]
    for name in ("gcs", "azure", "hf", "heic", "webdataset", "eval"):
        wanted += extras[name]
    for requirement in map(Requirement, wanted):
        version = locked(lock).get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement}: make lock"
        other = requirement.name == "torch" and lock == "new"  # test_torch_version looks at it
        assert other or requirement.specifier.contains(version), f"{requirement}: {version}"


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_package_has_a_hash(lock):
    entries = re.split(r"^(?=\S)", text_of(lock), flags=re.M)[1:]
    # Some have a version for each Python.
    assert len(entries) == len(re.findall(r"^[\w.-]+==", text_of(lock), re.M)) > 100
    assert all("--hash=sha256:" in entry for entry in entries)


def test_the_base_is_pinned_by_its_digest():
    base = re.search(r"^ARG BASE_IMAGE=(\S+)$", (ROOT / "docker/Dockerfile").read_text(), re.M)
    assert base
    assert re.fullmatch(r"docker\.io/pytorch/pytorch:2\.7\.0-[\w.-]+@sha256:[0-9a-f]{64}", base[1])


def test_configuration(image):
    (found,) = json.loads(podman("inspect", image.train))
    config = found["Config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["tini", "--"]
    assert config["WorkingDir"] == "/opt/ahpa_scale"
    labels = config["Labels"]
    names = ("title", "description", "licenses", "version", "revision")
    assert all(labels[f"org.opencontainers.image.{name}"] for name in names)
    assert labels["org.opencontainers.image.version"] == "0.1.0"
    assert re.fullmatch(r"[0-9a-f]{40}|unknown", labels["org.opencontainers.image.revision"])


def test_both_targets_share_all_layers(image):
    (train,), (prepare,) = (json.loads(podman("inspect", n)) for n in (image.train, image.prepare))
    layers = [found["RootFS"]["Layers"] for found in (train, prepare)]
    common = [a for a, b in zip(*layers, strict=False) if a == b]
    # Podman writes an empty layer for what only configures.
    assert len(common) >= max(map(len, layers)) - 1


def test_trains_without_root_on_a_root_that_is_read_only(image, tmp_path):
    script = (
        "id -u && ! touch /opt/x 2>/dev/null && ahpa-scale prepare demo --size 32 "
        "--num-samples 64 --out /tmp/data "
        "&& ahpa-scale launch --nproc 1 train.py yamls/demo-ahpa.yaml "
        f"device=cpu precision={FASTEST} data.local=/tmp/data output_dir=/tmp/run "
        "checkpoint.save_folder=/tmp/checkpoints checkpoint.save_interval=2ba max_duration=4ba "
        "global_train_batch_size=16 optimizer.warmup=2ba sampling.interval=2ba "
        "logging.interval=1ba "
        "&& ahpa-scale checkpoints verify /tmp/checkpoints && tail -n 1 /tmp/run/metrics.jsonl"
    )
    said = run(image, "bash", "-ec", script)
    assert said.splitlines()[0] == "10001"
    assert json.loads(said.splitlines()[-1])["batch"] == 4
    assert "done: metrics /tmp/run/metrics.jsonl" in said


def test_compiles_blocks(image):
    script = (
        "import torch; f = torch.compile(lambda x: (x.sin() + 1).sum());"
        "print('same', torch.allclose(f(torch.ones(64)), (torch.ones(64).sin() + 1).sum()))"
    )
    assert "same True" in run(image, "python", "-c", script)


def test_a_mistake_is_one_line_and_exit_code_2(image):
    done = podman(
        "run",
        "--rm",
        *RESTRICTED,
        *image.flags,
        "--entrypoint=bash",
        image.train,
        "-c",
        "ahpa-scale launch --nproc 1 train.py yamls/demo-ahpa.yaml modle.name=tiny/2; echo code $?",
        both=True,
    )
    *rest, line, code = done.splitlines()
    assert code == "code 2"
    assert line.startswith("error: command line: modle")
    assert not rest


def test_the_process_before_ours_hands_signals_on(image):
    name = "ahpa-image-signal"
    podman("rm", "--force", name, check=False)
    script = "import signal, sys; signal.signal(15, lambda *_: sys.exit(79)); signal.pause()"
    flags = ["--name", name, *RESTRICTED, *image.flags]
    podman("run", "--detach", *flags, image.train, "python", "-c", script)
    try:
        podman("exec", name, "python", "-c", "import time; time.sleep(1)")
        podman("stop", "--time", "20", name)
        assert podman("inspect", "--format", "{{.State.ExitCode}}", name).strip() == "79"
    finally:
        podman("rm", "--force", "--time", "0", name, check=False)


def test_no_secret_and_no_path_of_the_builder_is_in_it(image):
    """The builder's environment and working tree hold secrets; history and layers don't."""
    planted = [value.encode() for value in SECRETS.values()]
    history = podman("history", "--no-trunc", image.train) + podman("inspect", image.train)
    assert not [value for value in SECRETS.values() if value in history]
    folders = [str(ROOT), str(image.tree)]
    assert not [folder for folder in folders if folder in history]
    ours = re.compile(rb"AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY|hf_[A-Za-z0-9]{30}")
    seen = 0
    for path, content in added_files(image.train):
        seen += 1
        assert not [value for value in planted if value in content], path
        assert not [folder for folder in folders if folder.encode() in content], path
        if "ahpa_scale" in path:
            assert not ours.search(content), path
            assert not re.search(r"/(\.git|\.env|wandb|runs|tests)(/|$)", path), path
    assert seen > 100
