# SPDX-License-Identifier: Apache-2.0
"""`ahpa-scale doctor`: what it says of machines that can train, and of those that can not."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from job import CLI, run
from packaging.requirements import Requirement
from s3_server import BUCKET, S3Server, s3_server

from ahpa_scale import storage
from ahpa_scale.cli import main
from ahpa_scale.commands.doctor import host, places
from ahpa_scale.commands.doctor.finding import Verdict
from ahpa_scale.commands.doctor.gpus import judge
from ahpa_scale.commands.doctor.packages import unmet

#: What PyPI's wheel of torch 2.7.0 says of itself.
WHEEL = ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90")
GIB = 2**30


@pytest.fixture
def doctor(capfd) -> Callable[..., tuple[int, str, str]]:
    def call(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["doctor", *map(str, words)])
        out, err = capfd.readouterr()
        return int(ended.value.code or 0), out, err

    return call


@pytest.fixture
def yaml(tmp_path: Path) -> Callable[..., Path]:
    def write(data: Path, saved: object, output: object = tmp_path / "run") -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(
            f"run_name: a\nmax_duration: 10ba\noutput_dir: {output}\ndata: {{local: {data}}}\n"
            f"checkpoint: {{save_folder: '{saved}', save_interval: 5ba}}\n"
        )
        return path

    return write


def line(out: str, subject: str) -> str:
    (found,) = (told for told in out.splitlines() if told[7:].startswith(f"{subject}: "))
    return found


@pytest.mark.parametrize(
    ("capability", "kernels", "verdict"),
    [
        ((9, 0), WHEEL, Verdict.OK),  # H100, H200
        ((8, 9), WHEEL, Verdict.OK),  # L40: binaries of 8.6
        ((7, 5), WHEEL, Verdict.NOTE),  # T4: no bfloat16
        ((10, 0), WHEEL, Verdict.WRONG),  # B200
        ((12, 0), WHEEL, Verdict.WRONG),  # RTX 50
        ((12, 0), (*WHEEL, "compute_90"), Verdict.OK),
        ((10, 0), ("sm_90a", "sm_90", "sm_100"), Verdict.OK),
        ((10, 3), ("sm_100f",), Verdict.OK),
        ((9, 0), ("sm_90a",), Verdict.OK),
        ((10, 0), ("sm_90a", "compute_90a"), Verdict.WRONG),
        ((8, 0), ("sm_86",), Verdict.WRONG),
    ],
)
def test_a_gpu_needs_kernels_of_its_kind(capability, kernels, verdict):
    finding = judge("gpu 0", "A card", capability, 80 * GIB, kernels)
    assert finding.verdict is verdict
    assert f"A card, 80 GiB, sm_{capability[0]}{capability[1]}" in finding.text
    if verdict is Verdict.WRONG:
        assert " ".join(kernels) in finding.text


def test_the_limits_of_a_container_are_judged():
    assert host.shared_memory(None).verdict is Verdict.WRONG
    assert host.shared_memory(64 * 2**20).verdict is Verdict.WRONG, "Docker's default"
    assert host.shared_memory(512 * 2**20).verdict is Verdict.NOTE
    assert host.shared_memory(8 * GIB).verdict is Verdict.OK
    assert host.open_files(1024, 4096).verdict is Verdict.NOTE
    assert host.open_files(65536, 65536).verdict is Verdict.OK
    unlimited = resource.RLIM_INFINITY
    assert host.open_files(unlimited, unlimited).verdict is Verdict.OK
    assert host.open_files(1024, unlimited).text.endswith("ulimit -n unlimited")


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("torch>=2", None),
        ("torch>=99", "torch 2."),
        ("no-such-package>=1", "no-such-package is missing: pip install 'no-such-package>=1'"),
        ("no-such-package; extra == 'gcs'", None),
        ("no-such-package; python_version < '3'", None),
    ],
)
def test_a_package_is_held_to_what_is_asked_of_it(asked, told):
    problem = unmet(Requirement(asked))
    assert problem is None if told is None else problem.startswith(told)


def test_either_torch_will_do():
    old, installed = Requirement("torch>=1,<2"), Requirement("torch>=2")
    assert unmet(old, installed) is None
    assert "tested with <2,>=1 and <99.1,>=99:" in unmet(old, Requirement("torch>=99,<99.1"))
    assert unmet(old, Requirement("numpy>=1")) is not None


@given(st.floats(-1e6, 1e6))
def test_a_clock_that_is_off_is_told_with_its_side(apart):
    finding = places.clock(apart, "s3://bucket")
    far = {Verdict.OK: (0, 60), Verdict.NOTE: (60, 900), Verdict.WRONG: (900, 2e6)}
    least, most = far[finding.verdict]
    assert least <= abs(apart) < most
    if finding.verdict is not Verdict.OK:
        assert ("ahead of" in finding.text) is (apart > 0)


def test_a_machine_that_is_fit(doctor, yaml, demo_data, tmp_path):
    code, out, _ = doctor(yaml(demo_data(64), tmp_path / "saved"), "seed=3")
    assert code == 0, out
    assert "WRONG" not in out
    for subject in ("python", "packages", "host", "shared memory", "open files"):
        assert line(out, subject)
    assert "64 samples" in line(out, "data")
    assert "takes writes" in line(out, "checkpoint.save_folder")
    assert out.splitlines()[-1].startswith("fit to train")
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "saved").exists()


def test_without_a_run_it_looks_at_the_machine_alone(doctor):
    code, out, _ = doctor()
    assert code == 0, out
    assert "data: " not in out


def test_each_place_that_fails_is_a_line(doctor, yaml, tmp_path):
    (tmp_path / "file").write_text("x")
    path = yaml(tmp_path / "none", tmp_path / "file" / "x", tmp_path / "file" / "y")
    code, out, _ = doctor(path)
    assert code == 1
    assert line(out, "data").startswith("WRONG")
    assert "no data set" in line(out, "data")
    for key in ("output_dir", "checkpoint.save_folder"):
        assert line(out, key).startswith("WRONG")
        assert str(tmp_path / "file") in line(out, key)
    assert out.splitlines()[-1] == "not fit to train: 3 wrong"


def test_a_mistake_in_the_run_is_one_line(doctor, yaml, tmp_path):
    code, out, err = doctor(yaml(tmp_path, tmp_path), "modle.name=B/2")
    assert (code, out) == (2, "")
    assert "modle" in err
    assert len(err.splitlines()) == 1


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


def test_a_store_with_the_credentials_at_hand(
    doctor, yaml, demo_data, server: S3Server, monkeypatch: pytest.MonkeyPatch
):
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    url = f"s3://{BUCKET}/saved"
    path = yaml(demo_data(64), url)
    code, out, _ = doctor(path)
    assert code == 0, out
    assert f"{url} takes writes" in line(out, "checkpoint.save_folder")
    clocks = [told for told in out.splitlines() if "clock: " in told]
    assert any(url in told and told.startswith("ok") for told in clocks), out
    assert storage.find(url) == {}
    wrong = {**server.environment, "AWS_SECRET_ACCESS_KEY": "another"}
    done = run(CLI, "doctor", path, environment=wrong)
    assert done.returncode == 1, done.stderr
    assert line(done.stdout, "checkpoint.save_folder").startswith("WRONG")
    assert "another" not in done.stdout + done.stderr
